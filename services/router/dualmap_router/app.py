"""The router put together: the one place where its parts meet."""

import asyncio
import logging
import os
import socket
import ssl
import time
from typing import Any

from dualmap_router.api import Api
from dualmap_router.attempt import Attempts
from dualmap_router.breakers import Breakers
from dualmap_router.charges import Charges
from dualmap_router.door import make_door
from dualmap_router.http_server import HttpServer
from dualmap_router.key_watch import PERIOD_S as KEYS_POLL_S
from dualmap_router.metrics import RouterMetrics
from dualmap_router.models import Models
from dualmap_router.pilot import Pilot
from dualmap_router.placement import Placement
from dualmap_router.resumer import Resumer
from dualmap_router.sessions import Sessions
from dualmap_router.settings import RouterSettings
from dualmap_router.stream_record import StreamRecords
from dualmap_router.tenant_limits import TenantLimits
from dualmap_router.trace import RequestTraces
from dualmap_router.ui.pages import LivePages, NoPages, Pages
from dualmap_router.ui.request_log import FlightWatch, RequestLog
from dualmap_router.ui.snapshot import Snapshots
from dualmap_service.grpc_access import grpc_access
from dualmap_service.lifecycle import Background, ServiceFailedError, every, wait_for
from dualmap_service.registry import Membership, MembershipWatch
from dualmap_service.store import Store
from dualmap_service.tracing import Tracing

log = logging.getLogger(__name__)

_POLL_S = 0.25
_RECONCILE_S = 2.0
_RENEW_S = 5.0


class RouterApp:
    """One router process."""

    def __init__(self, settings: RouterSettings, stop: asyncio.Event) -> None:
        self._settings = settings
        self._stop = stop
        router = settings.router_id or f"{socket.gethostname()}-{settings.port or os.getpid()}"
        self.store = Store(settings, f"dualmap-router-{router}")
        self.charges = Charges(self.store, settings.pool, router)
        self.placement = Placement(settings, router, self.store, self.charges)
        self.metrics = RouterMetrics()
        self.watch = MembershipWatch(self.store, settings.pool, router)
        self.sessions = Sessions(
            router,
            settings.pool,
            settings.max_buffer_bytes,
            self._reachable_changed,
            grpc_access(settings),
        )
        self.models = Models()
        self.breakers = Breakers(settings.breaker_failures, settings.breaker_s)
        self._tracing = Tracing("router", router, settings.trace_endpoint, settings.trace_share)
        request_traces = RequestTraces(self._tracing, router)
        attempts = Attempts(self.placement, self.sessions, self.metrics, self.breakers, request_traces.keep)
        pilot = Pilot(
            self.placement,
            self.sessions,
            attempts,
            self.metrics,
            Resumer(self.placement, self.models),
            self.breakers,
            settings.max_attempts,
            settings.request_timeout_s,
        )
        self.door = make_door(settings, self.metrics.turned_away)
        self.limits = TenantLimits(
            self.store,
            settings.pool,
            router,
            settings.route_deadline_ms / 1e3,
            self.metrics.limited,
            self.metrics.local_limits.inc,
        )
        self.records = StreamRecords(settings.max_resume_bytes, settings.max_resume_total_bytes)
        traces: FlightWatch = request_traces
        pages: Pages = NoPages()
        if settings.ui:
            traces, pages = self._look_inside(settings, router, traces)
        self.api = Api(
            settings,
            router,
            self.placement,
            self.models,
            pilot,
            self.metrics,
            traces,
            self.records,
            self.limits,
            pages,
            self.state,
        )
        self.http = HttpServer(self.api.handle, settings.http_limits(), self.api.refused, self.door.enter)
        self._router = router
        self._background = Background(stop)
        self._gauges()

    def _look_inside(
        self, settings: RouterSettings, router: str, traces: FlightWatch
    ) -> tuple[FlightWatch, Pages]:
        """The live page, and the request log that feeds it."""
        log_of_requests = RequestLog(traces)

        def draining() -> bool:
            return self.api.draining

        snapshots = Snapshots(
            settings,
            router,
            self.store,
            self.watch,
            self.placement,
            self.sessions,
            log_of_requests,
            draining,
        )
        pages = LivePages(snapshots, draining)
        self.metrics.gauge("dualmap_page_viewers", "Who looks at the live page.", lambda: pages.viewers)
        return log_of_requests, pages

    def _gauges(self) -> None:
        self.metrics.gauge(
            "dualmap_open_breakers",
            "Instances that nothing is sent to, since they broke one request after the other.",
            lambda: self.breakers.num_open,
        )
        self.metrics.gauge("dualmap_in_flight", "Requests in this router.", lambda: self.api.in_flight)
        self.metrics.gauge("dualmap_connections", "Client connections.", lambda: len(self.http.connections))
        self.metrics.gauge(
            "dualmap_held_body_bytes", "Of requests not answered yet.", lambda: self.http.room.held_bytes
        )
        self.metrics.gauge(
            "dualmap_recorded_bytes",
            "Of streams, kept in case they have to be continued.",
            lambda: self.records.held_bytes,
        )
        self.metrics.gauge("dualmap_live_charges", "Charges not released.", lambda: len(self.charges))
        self.metrics.gauge("dualmap_exchanges", "Attempts open on sessions.", lambda: self.sessions.exchanges)
        self.metrics.gauge(
            "dualmap_reachable_instances", "Instances with a session.", lambda: len(self.placement.usable)
        )
        self.metrics.gauge("dualmap_store_available", "Whether Redis answers.", lambda: self.store.available)
        self.metrics.gauge(
            "dualmap_limited_in_flight", "Requests of tenants with limits.", lambda: self.limits.inside
        )
        self.metrics.gauge("dualmap_api_keys", "API keys in force.", lambda: self.door.num_keys)
        self.metrics.gauge(
            "dualmap_api_keys_stale",
            "Whether the keys file cannot be used as it is.",
            lambda: self.door.stale,
        )
        self.metrics.gauge("dualmap_splits", "Split prefixes known here.", lambda: len(self.placement.splits))

    def state(self) -> dict[str, Any]:
        """What /readyz says."""
        return {
            "ready": bool(self.placement.usable) and not self.api.draining,
            "router": self._router,
            "pool": self._settings.pool,
            "store": "available" if self.store.available else "unavailable",
            "draining": self.api.draining,
            "instances": list(self.placement.usable),
            "in_flight": self.api.in_flight,
            "live_charges": len(self.charges),
            "limited_in_flight": self.limits.inside,
            "exchanges": self.sessions.exchanges,
            "held_body_bytes": self.http.room.held_bytes,
            "recorded_bytes": self.records.held_bytes,
            "clock_s": time.time(),
        }

    def _reachable_changed(self) -> None:
        self.models.follow(self.watch.current)
        self.placement.pool.update(self.watch.current, self.sessions.reachable)
        members = self.watch.current.members
        self.breakers.keep({name: member.registration.generation for name, member in members.items()})

    def _membership_changed(self, membership: Membership) -> None:
        self.sessions.follow(membership)
        self._reachable_changed()

    async def _poll(self) -> None:
        """Read the membership and the telemetry in it; keep the last known through an outage."""
        if await self.watch.poll():
            self.placement.pool.refresh(self.watch.current)
            self.models.follow(self.watch.current)

    async def _reconcile(self) -> None:
        await self.limits.sync()
        mended = await self.charges.reconcile()
        if mended:
            self.metrics.reconciled.inc(mended)

    async def run(self) -> None:
        """Serve until told to stop, then let what runs finish."""
        settings = self._settings
        if not await self.store.start():
            log.warning("router.starts_without_store")
        self.watch.on_change.append(self._membership_changed)
        self._background.start(every(_POLL_S, self._poll), "membership")
        self._background.start(every(_RECONCILE_S, self._reconcile), "reconcile")
        self._background.start(every(KEYS_POLL_S, self.door.poll), "keys")
        tls = settings.http_tls()
        self._background.start(every(_RENEW_S, tls.renew), "certificate")
        port = await self._listen(settings.port, tls.context, settings.reuse_port)
        if settings.own_port:
            await self._listen(settings.own_port, tls.context)
        log.info(
            "router.ready",
            extra={
                "router": self._router,
                "url": f"{tls.scheme}://{settings.host}:{port}",
                "pool": settings.pool,
            },
        )
        await self._stop.wait()
        await self._drain()
        await self.http.stop()
        await self.sessions.close()
        await self.charges.reconcile()
        await self._background.close()
        await self.store.close()
        await asyncio.to_thread(self._tracing.close)
        log.info("router.stopped", extra={"router": self._router})

    async def _listen(self, port: int, context: ssl.SSLContext | None, reuse_port: bool = False) -> int:
        host = self._settings.host
        try:
            return await self.http.start(host, port, context, reuse_port)
        except OSError as exc:
            raise ServiceFailedError(f"cannot listen on {host}:{port}: {exc}") from exc

    async def _drain(self) -> None:
        """Readiness goes off, running answers finish."""
        self.api.draining = True
        self.http.drain()
        log.info("router.draining", extra={"in_flight": self.api.in_flight})
        if not await wait_for(self.api.idle, self._settings.drain_s):
            log.warning("router.drain_cut", extra={"in_flight": self.api.in_flight})


async def run(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run one router; `DUALMAP_ROUTER_*` in the environment are its settings."""
    log.info("router.starting", extra={"pid": os.getpid()})
    await RouterApp(settings, stop).run()
