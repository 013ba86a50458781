"""Telemetry becomes `perf`: what changed at once, the rest often enough, the silent never."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from dualmap.types import PrefillSpeed
from dualmap_rebalancer.fold import Fold
from dualmap_rebalancer.metrics import Metrics
from dualmap_rebalancer.telemetry import Heard
from dualmap_service.store import Store
from dualmap_wire.telemetry import RunningReport

from ...waiting import eventually
from .conftest import KEYS, Start, perf_of
from .recording_worker import POOL, RecordingWorker


async def now_us(shared: Store) -> int:
    seconds, micros = await shared.command("TIME")
    return int(seconds) * 1_000_000 + int(micros)


async def test_report_reaches_perf_with_its_running_prefill(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start():
        first = await eventually(lambda: perf_of(shared, "w1"))
        assert first.speed == PrefillSpeed(0.0, 0.001, 0.0)
        assert (first.running_charge, first.held) == ("", False)
        running = RunningReport(
            router="a", charge_id="c7", elapsed_s=1.5, cost_s=2.25, feasible=True, gives_way_s=0.25
        )
        worker.silent = True
        said_us = await now_us(shared)
        worker.say(running=running, held=True)

        async def seen() -> bool:
            perf = await perf_of(shared, "w1")
            return perf is not None and perf.running_charge == "c7"

        await eventually(seen, 1.0)
        perf = await perf_of(shared, "w1")
        assert perf is not None
        assert (perf.running_router, perf.cost_us, perf.held) == ("a", 2_250_000, True)
        assert (perf.feasible, perf.gives_way_us) == (True, 250_000)
        # It started 1.5 s before the worker said so, whenever that was folded.
        assert -50_000 <= perf.started_us - (said_us - 1_500_000) <= 300_000


async def test_unchanged_is_refreshed_and_silence_grows_old(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start(refold_s=0.3) as running:
        first = await eventually(lambda: perf_of(shared, "w1"))
        folds = await running.metric("fold_seconds_count")

        async def refreshed() -> bool:
            perf = await perf_of(shared, "w1")
            return perf is not None and perf.reported_us > first.reported_us + 500_000

        await eventually(refreshed)
        # Ten reports a second came, but they said nothing new.
        assert await running.metric("fold_seconds_count") - folds <= 4
        worker.silent = True
        silent_us = await now_us(shared)

        async def refolded() -> bool:
            return await now_us(shared) > silent_us + 700_000

        # What came last may still be due: it is written within `refold_s` or not at all.
        await eventually(refolded)
        last = await perf_of(shared, "w1")
        await running.passes(6)
        assert await perf_of(shared, "w1") == last


async def test_other_generation_is_not_folded(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start() as running:
        await eventually(lambda: perf_of(shared, "w1"))
        worker.say(generation=2, held=True)
        await running.above("telemetry_restarts_total", 0)
        await running.passes(2)
        perf = await perf_of(shared, "w1")
        assert perf is not None and not perf.held


async def test_stolen_lead_stops_folding_and_moving(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start() as running:
        await eventually(lambda: perf_of(shared, "w1"))
        # What happens to a leader that was thought dead: another holds the lease and a newer fence.
        await asyncio.gather(
            shared.command("SET", KEYS.key("leader"), "thief", "PX", 60_000),
            shared.command("INCR", KEYS.key("fence")),
        )
        worker.say(held=True)

        async def deposed() -> bool:
            return await running.metric("leader") == 0

        await eventually(deposed, 1.0)
        passes = await running.metric("passes_total")
        worker.say(queued=(), busy_s=99.0, held=False, speed=(1.0, 1.0, 1.0))
        reports = await running.metric("reports_total", instance="w1")
        await running.above("reports_total", reports + 2, instance="w1")
        assert await running.metric("passes_total") == passes
        perf = await perf_of(shared, "w1")
        assert perf is not None and perf.speed == PrefillSpeed(0.0, 0.001, 0.0)


async def test_an_instance_leaves_while_a_large_pool_is_folded(shared: Store) -> None:
    report = RecordingWorker(shared, "any").report
    heard = {f"w{number}": Heard(report, 0, time.monotonic(), number) for number in range(65)}
    folded: list[int] = []

    class Telemetry:
        def __init__(self) -> None:
            self.heard = heard

        def speeds(self) -> dict[str, PrefillSpeed]:
            return dict.fromkeys(self.heard, PrefillSpeed(0.0, 0.001, 0.0))

    async def function(_name: str, _prefix: str, _fence: str, *instances: Any) -> int:
        folded.append(len(instances) // 3)
        heard.pop("w64", None)
        return folded[-1]

    store: Any = SimpleNamespace(function=function)
    leadership: Any = SimpleNamespace(fence=1)
    telemetry: Any = Telemetry()
    await Fold(store, POOL, leadership, telemetry, Metrics(), refold_s=60.0).step()
    assert folded == [64, 1]
