"""Folding: the leader writes what it heard into `perf`, where every router's decisions read it."""

import logging
import time
from dataclasses import dataclass

from dualmap.types import PrefillSpeed
from dualmap_rebalancer.leadership import Leadership
from dualmap_rebalancer.metrics import Metrics
from dualmap_rebalancer.telemetry import Heard, Telemetry
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_functions import Perf
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import QueueReport

log = logging.getLogger(__name__)

_PER_CALL = 64
"""Instances per function call: one call must not hold up the routers' calls behind it."""


@dataclass(frozen=True, slots=True)
class _Folded:
    turn: int
    facts: tuple[object, ...]
    at_s: float


class Fold:
    """Writes reports to Redis when what they say has changed, and else just often enough to look fresh."""

    def __init__(
        self,
        store: Store,
        pool: str,
        leadership: Leadership,
        telemetry: Telemetry,
        metrics: Metrics,
        refold_s: float,
    ) -> None:
        self._store = store
        self._prefix = PoolKeys(pool).prefix
        self._leadership = leadership
        self._telemetry = telemetry
        self._metrics = metrics
        self._refold_s = refold_s
        self._folded: dict[str, _Folded] = {}
        self._fence: int | None = None

    async def step(self) -> None:
        """Fold all that is due."""
        fence = self._leadership.fence
        if fence != self._fence:
            # Another may have written since; what this process wrote in an earlier term says nothing.
            self._folded.clear()
            self._fence = fence
        if fence is None:
            return
        due = self._due(time.monotonic())
        # Read together with `due`: while a part is written, an instance of a later part may leave.
        speeds = self._telemetry.speeds()
        for first in range(0, len(due), _PER_CALL):
            if not await self._write(fence, due[first : first + _PER_CALL], speeds):
                return
        if len(self._folded) > len(self._telemetry.heard):
            self._folded = {k: v for k, v in self._folded.items() if k in self._telemetry.heard}

    def _due(self, now_s: float) -> list[tuple[str, Heard]]:
        """Instances with a newer report that says something else, or the same for a while."""
        due = []
        for name, heard in self._telemetry.heard.items():
            before = self._folded.get(name)
            if before is not None:
                if heard.turn == before.turn:
                    continue
                if now_s - before.at_s < self._refold_s and _facts(heard.report) == before.facts:
                    continue
            # Writing an old report would make it look new.
            if now_s - heard.received_s <= self._refold_s:
                due.append((name, heard))
        return due

    async def _write(self, fence: int, due: list[tuple[str, Heard]], speeds: dict[str, PrefillSpeed]) -> bool:
        """One call; false when the rest must wait."""
        now_s = time.monotonic()
        args: list[str | bytes] = [str(fence)]
        for name, heard in due:
            args += (name, str(heard.report.generation), _perf(heard, speeds[name], now_s).pack())
        try:
            with self._metrics.fold_seconds.time():
                folded = await self._store.function("fold", self._prefix, *args)
        except StoreError as exc:
            log.debug("fold.failed", extra={"error": str(exc)})
            return False
        if folded == -1:
            self._leadership.step_down("the store has a newer fence")
            return False
        for name, heard in due:
            self._folded[name] = _Folded(heard.turn, _facts(heard.report), now_s)
        return True


def _facts(report: QueueReport) -> tuple[object, ...]:
    """What `perf` holds but for the time that passes."""
    running = report.running
    if running is None:
        return (report.generation, report.speed, report.held)
    head = (running.router, running.charge_id, running.cost_s, running.feasible)
    # How soon it gives way grows slowly as it goes on: that alone is no news.
    return (report.generation, report.speed, report.held, head, running.gives_way_s is None)


def _perf(heard: Heard, speed: PrefillSpeed, now_s: float) -> Perf:
    """A report as `fold` takes it: the running prefill has gone on since the report came."""
    report, running = heard.report, heard.report.running
    if running is None:
        return Perf(speed, "", "", 0, 0, False, report.held)
    elapsed_s = running.elapsed_s + (now_s - heard.received_s)
    return Perf(
        speed=speed,
        running_router=running.router,
        running_charge=running.charge_id,
        started_us=round(elapsed_s * 1e6),
        cost_us=round(running.cost_s * 1e6),
        feasible=running.feasible,
        held=report.held,
        gives_way_us=0 if running.gives_way_s is None else max(round(running.gives_way_s * 1e6), 1),
    )
