"""The router put together: the one place where its parts meet."""

import asyncio
import logging
import os
import socket
from typing import Any

from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from dualmap_router.api import Api
from dualmap_router.charges import Charges
from dualmap_router.flight import Pilot
from dualmap_router.metrics import RouterMetrics
from dualmap_router.placement import Placement
from dualmap_router.sessions import Sessions
from dualmap_router.settings import RouterSettings
from dualmap_service.lifecycle import Background, ServiceFailedError, every, wait_for
from dualmap_service.registry import Membership, MembershipWatch
from dualmap_service.store import Store

log = logging.getLogger(__name__)

_POLL_S = 0.25
_RECONCILE_S = 2.0


class RouterApp:
    """One router process."""

    def __init__(self, settings: RouterSettings, stop: asyncio.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._port = settings.port or _free_port(settings.host)
        router = settings.router_id or f"{socket.gethostname()}-{self._port}"
        self.store = Store(settings.redis_url, f"dualmap-router-{router}")
        self.charges = Charges(self.store, settings.pool, router)
        self.placement = Placement(settings, router, self.store, self.charges)
        self.metrics = RouterMetrics()
        self.watch = MembershipWatch(self.store, settings.pool, router)
        self.sessions = Sessions(router, settings.pool, settings.max_buffer_bytes, self._reachable_changed)
        pilot = Pilot(
            self.placement, self.sessions, self.metrics, settings.max_attempts, settings.request_timeout_s
        )
        self.api = Api(settings, router, self.placement, pilot, self.metrics, self.state)
        self._router = router
        self._background = Background(stop)
        self._gauges()

    def _gauges(self) -> None:
        self.metrics.gauge("dualmap_in_flight", "Requests in this router.", lambda: self.api.in_flight)
        self.metrics.gauge("dualmap_live_charges", "Charges not released.", lambda: len(self.charges))
        self.metrics.gauge("dualmap_exchanges", "Attempts open on sessions.", lambda: self.sessions.exchanges)
        self.metrics.gauge(
            "dualmap_reachable_instances", "Instances with a session.", lambda: len(self.placement.usable)
        )
        self.metrics.gauge("dualmap_store_available", "Whether Redis answers.", lambda: self.store.available)
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
            "exchanges": self.sessions.exchanges,
        }

    def _reachable_changed(self) -> None:
        self.placement.update(self.watch.current, self.sessions.reachable)

    def _membership_changed(self, membership: Membership) -> None:
        self.sessions.follow(membership)
        self._reachable_changed()

    async def _poll(self) -> None:
        """Read the membership and the telemetry in it; keep the last known through an outage."""
        if await self.watch.poll():
            self.placement.refresh(self.watch.current)

    async def _reconcile(self) -> None:
        released = await self.charges.reconcile()
        if released:
            self.metrics.reconciled.inc(released)

    async def run(self) -> None:
        """Serve until told to stop, then let what runs finish."""
        settings = self._settings
        if not await self.store.start():
            log.warning("router.starts_without_store")
        self.watch.on_change.append(self._membership_changed)
        self._background.start(every(_POLL_S, self._poll), "membership")
        self._background.start(every(_RECONCILE_S, self._reconcile), "reconcile")
        _check_port(settings.host, self._port)
        server = Server(
            self.api,
            address=settings.host,
            port=self._port,
            interface=Interfaces.RSGI,
            websockets=False,
            log_enabled=False,
            backlog=1024,
            backpressure=settings.max_in_flight + 64,
            http1_settings=HTTP1Settings(header_read_timeout=15_000, max_buffer_size=417792),
        )
        self._background.start(self._serve(server), "http")
        log.info(
            "router.ready",
            extra={
                "router": self._router,
                "url": f"http://{settings.host}:{self._port}",
                "pool": settings.pool,
            },
        )
        await self._stop.wait()
        await self._drain()
        server.stop()  # type: ignore[no-untyped-call]
        await self.sessions.close()
        await self.charges.reconcile()
        await self._background.close()
        await self.store.close()
        log.info("router.stopped", extra={"router": self._router})

    async def _serve(self, server: Server) -> None:
        try:
            await server.serve()
        except OSError as exc:
            raise ServiceFailedError(f"cannot listen on {self._settings.host}:{self._port}: {exc}") from exc
        if not self._stop.is_set():
            raise ServiceFailedError("the HTTP server ended by itself")

    async def _drain(self) -> None:
        """Readiness goes off, running answers finish."""
        self.api.draining = True
        log.info("router.draining", extra={"in_flight": self.api.in_flight})
        if not await wait_for(self.api.idle, self._settings.drain_s):
            log.warning("router.drain_cut", extra={"in_flight": self.api.in_flight})


def _free_port(host: str) -> int:
    """A port that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _check_port(host: str, port: int) -> None:
    """Granian shares a taken port with whoever has it (SO_REUSEPORT); ServiceFailedError instead."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ServiceFailedError(f"cannot listen on {host}:{port}: {exc}") from exc


async def run(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run one router; `DUALMAP_ROUTER_*` in the environment are its settings."""
    log.info("router.starting", extra={"pid": os.getpid()})
    await RouterApp(settings, stop).run()
