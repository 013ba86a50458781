"""The rebalancer, put together: what it is made of, in the order in which it starts and, reversed, stops."""

import asyncio
import logging
from contextlib import AsyncExitStack

from dualmap_rebalancer.fold import Fold
from dualmap_rebalancer.leadership import Leadership
from dualmap_rebalancer.metrics import Metrics
from dualmap_rebalancer.migrator import Migrator
from dualmap_rebalancer.noticeboard import MoveLog, Noticeboard
from dualmap_rebalancer.pages import Pages
from dualmap_rebalancer.passes import Passes
from dualmap_rebalancer.reap import Reap
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_rebalancer.telemetry import Telemetry
from dualmap_service.grpc_access import grpc_access
from dualmap_service.lifecycle import Background, every
from dualmap_service.registry import Membership, MembershipWatch
from dualmap_service.store import Store

log = logging.getLogger(__name__)

_STORE_WAIT_S = 2.0
_BOARD_S = 0.5


async def run(settings: RebalancerSettings, stop: asyncio.Event) -> None:
    """Lead or stand by until `stop` is set. A store that is away is waited for."""
    async with AsyncExitStack() as closing:
        store = Store(settings, f"dualmap-rebalancer-{settings.rebalancer_id}")
        leadership = Leadership(
            store,
            settings.pool,
            settings.rebalancer_id,
            lease_s=settings.lease_s,
            renew_s=settings.renew_s,
            standby_poll_s=settings.standby_poll_s,
        )
        metrics = Metrics()
        metrics.leader.set_function(lambda: float(leadership.fence is not None))
        closing.push_async_callback(store.close)
        await store.start(_STORE_WAIT_S)

        pages = Pages(metrics.page, lambda: store.available and leadership.settled and not stop.is_set())
        closing.push_async_callback(pages.close)
        address = await pages.start(settings.metrics_host, settings.metrics_port)

        telemetry = Telemetry(settings.pool, metrics, settings.listener())
        closing.callback(telemetry.close)
        migrator = Migrator(settings.move_deadline_s, grpc_access(settings))
        closing.push_async_callback(migrator.close)
        closing.push_async_callback(leadership.resign)

        background = Background(stop)
        closing.push_async_callback(background.close)
        watch = MembershipWatch(store, settings.pool)

        def follow(membership: Membership) -> None:
            telemetry.follow(membership)
            background.start(migrator.follow(membership), "follow-members")

        async def drain() -> None:
            telemetry.drain()

        watch.on_change.append(follow)
        fold = Fold(store, settings.pool, leadership, telemetry, metrics, settings.refold_s)
        reap = Reap(store, settings.pool, leadership, metrics, settings.reap_grace_s)
        moves = MoveLog()
        passes = Passes(settings, leadership, watch, telemetry, migrator, metrics, moves, background)
        board = Noticeboard(store, settings.pool, settings.rebalancer_id, leadership, telemetry, moves)
        background.start(leadership.run(), "leadership")
        background.start(watch.run(settings.members_poll_s), "members")
        background.start(every(settings.tick_s, drain), "telemetry")
        background.start(every(settings.tick_s, fold.step), "fold")
        background.start(every(settings.period_s, passes.step), "passes")
        background.start(every(settings.reap_s, reap.step), "reap")
        background.start(every(_BOARD_S, board.step), "board")

        facts = {"rebalancer": settings.rebalancer_id, "pool": settings.pool, "enabled": settings.enabled}
        log.info("rebalancer.ready", extra={"metrics_address": address, **facts})
        await stop.wait()
        log.info("rebalancer.stopping")
    log.info("rebalancer.stopped")
