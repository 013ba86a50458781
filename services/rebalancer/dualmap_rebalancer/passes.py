"""The passes: ten times a second, find the hot instances, plan moves off them, ask their workers."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from dualmap.queue_order import Deficits, QueuedRequest
from dualmap.rebalance import InstanceQueue, Move, QueuedWork, is_hot, plan_moves
from dualmap.types import PrefillSpeed
from dualmap_rebalancer.leadership import Leadership
from dualmap_rebalancer.metrics import Metrics, Outcome
from dualmap_rebalancer.migrator import Migrator
from dualmap_rebalancer.noticeboard import MoveLog
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_rebalancer.telemetry import Heard, Telemetry
from dualmap_service.lifecycle import Background
from dualmap_service.registry import Member, MembershipWatch
from dualmap_wire.telemetry import QueuedReport
from dualmap_wire.v1.worker_pb2 import MigrateReply

log = logging.getLogger(__name__)

_HOP_S = 0.05
"""What a moved request needs to reach its target's queue: a report from before shows the target too idle."""


@dataclass(slots=True)
class _Asked:
    """What was asked of a source since its last report that could show the effect."""

    request_ids: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    """Those of them that its worker has taken off the queue."""
    under_way: bool = False
    settled_turn: int = 0
    """The source's newest report when its worker had answered."""


class Passes:
    """Plans and sends moves; remembers what it asked until telemetry shows the effect."""

    def __init__(
        self,
        settings: RebalancerSettings,
        leadership: Leadership,
        watch: MembershipWatch,
        telemetry: Telemetry,
        migrator: Migrator,
        metrics: Metrics,
        log_of_moves: MoveLog,
        background: Background,
    ) -> None:
        self._settings = settings
        self._rule = settings.rule()
        self._leadership = leadership
        self._watch = watch
        self._telemetry = telemetry
        self._migrator = migrator
        self._metrics = metrics
        self._log_of_moves = log_of_moves
        self._background = background
        self._last_batch_s: dict[str, float] = {}
        self._asked: dict[str, _Asked] = {}
        self._arrivals_s: dict[str, float] = {}
        """When moves to a target were done last."""

    async def step(self) -> None:
        """One pass, if this process leads."""
        if self._leadership.fence is None:
            self._metrics.hot_instances.set(0)
            return
        with self._metrics.pass_seconds.time():
            await self._pass()
        self._metrics.passes.inc()

    async def _pass(self) -> None:
        now_s = time.monotonic()
        self._forget_who_left()
        queues = self._queues(now_s)
        hot = tuple(queue.instance for queue in queues if is_hot(queue, self._rule, now_s))
        self._metrics.hot_instances.set(len(hot))
        self._log_of_moves.hot = hot
        if not hot or not self._settings.enabled:
            return
        cooling = dict(self._last_batch_s)
        cooling |= {source: math.inf for source, asked in self._asked.items() if asked.under_way}
        # A big pool's plan takes a while; the lease has to be renewed meanwhile.
        moves = await asyncio.to_thread(plan_moves, queues, self._rule, now_s, cooling)
        fence = self._leadership.fence
        if fence is not None:
            for source, off_source in groupby(moves, key=lambda move: move.source):
                self._send(source, list(off_source), fence)

    # What the core plans on

    def _queues(self, now_s: float) -> list[InstanceQueue]:
        """The instances that have reported, as rebalancing sees them."""
        members = self._watch.current.members
        speeds = self._telemetry.speeds()
        return [
            self._queue(name, members[name], heard, speeds[name], now_s)
            for name, heard in self._telemetry.heard.items()
            if name in members
        ]

    def _queue(
        self, name: str, member: Member, heard: Heard, speed: PrefillSpeed, now_s: float
    ) -> InstanceQueue:
        report, age_s = heard.report, now_s - heard.received_s
        known = age_s <= self._settings.stale_s and report.generation == member.registration.generation
        if not known:
            return InstanceQueue(name, speed, busy_s=0.0, accepts=False)
        asked = self._asked_before(name, heard)
        return InstanceQueue(
            instance=name,
            speed=speed,
            # What gives way is in no feasible request's way.
            busy_s=max(report.busy_s - report.preemptible_s - age_s, 0.0),
            queue=tuple(
                _work(queued, heard.received_s, movable=queued.request_id not in asked.request_ids)
                for queued in report.queued
                if queued.request_id not in asked.gone
            ),
            accepts=member.takes_new_keys
            and report.state == "active"
            and not report.held
            and heard.received_s >= self._arrivals_s.get(name, -math.inf) + _HOP_S,
            deficits=Deficits(report.tenants_left_s),
        )

    def _asked_before(self, source: str, heard: Heard) -> _Asked:
        """What this report still shows as if it had not been asked for; nothing once a newer one came."""
        asked = self._asked.get(source)
        if asked is not None and not asked.under_way and heard.turn > asked.settled_turn:
            del self._asked[source]
            asked = None
        return asked or _Asked()

    def _forget_who_left(self) -> None:
        members = self._watch.current.members
        for kept in (self._last_batch_s, self._arrivals_s, self._asked):
            for name in kept.keys() - members.keys():
                del kept[name]

    # What becomes of a plan

    def _send(self, source: str, moves: list[Move], fence: int) -> None:
        """Ask a worker, without waiting: a worker that does not answer must not hold up the others."""
        member = self._watch.current.members.get(source)
        if member is None:
            return
        self._last_batch_s[source] = time.monotonic()
        asked = self._asked.setdefault(source, _Asked())
        asked.request_ids.update(move.request_id for move in moves)
        asked.under_way = True
        for move in moves:
            self._metrics.count_move(source, move.target, Outcome.ASKED)
        self._background.start(self._ask(member, moves, fence, asked), f"migrate-{source}")

    async def _ask(self, member: Member, moves: list[Move], fence: int, asked: _Asked) -> None:
        source = member.registration.instance
        reply: MigrateReply | None = None
        try:
            reply = await self._migrator.migrate(member.registration.grpc_address, moves, fence)
        finally:
            heard = self._telemetry.heard.get(source)
            asked.under_way = False
            asked.settled_turn = heard.turn if heard is not None else 0
            asked.gone.update(reply.moved if reply is not None else ())
            self._record(source, moves, reply)

    def _record(self, source: str, moves: Sequence[Move], reply: MigrateReply | None) -> None:
        """Count what became of each move."""
        moved = frozenset(reply.moved) if reply is not None else frozenset()
        num_done = 0
        for move in moves:
            if reply is None:
                outcome = Outcome.FAILED
            elif reply.fenced_off:
                outcome = Outcome.FENCED
            else:
                outcome = Outcome.DONE if move.request_id in moved else Outcome.LATE
            if outcome is Outcome.DONE:
                num_done += 1
                self._arrivals_s[move.target] = time.monotonic()
                self._metrics.move_benefit_seconds.inc(move.benefit_s)
            self._metrics.count_move(source, move.target, outcome)
            self._log_of_moves.add(move, outcome)
        if reply is not None and reply.fenced_off:
            self._leadership.check_soon()
        log.info("rebalance.batch", extra={"source": source, "asked": len(moves), "done": num_done})


def _work(queued: QueuedReport, received_s: float, *, movable: bool) -> QueuedWork:
    """A queued request on this process's clock."""
    return QueuedWork(
        queued=QueuedRequest(
            request_id=queued.request_id,
            arrival_s=received_s - queued.waited_s,
            own_s=queued.own_s,
            slo_s=queued.slo_s,
            cached_tokens=queued.cached_tokens,
            priority=queued.priority,
            prompt_tokens=queued.prompt_tokens,
            tenant=queued.tenant,
        ),
        prompt_tokens=queued.prompt_tokens,
        backup=queued.backup or None,
        backup_cached_tokens=queued.backup_cached_tokens,
        feasible=queued.feasible,
        movable=queued.movable and movable,
    )
