"""Subscriptions: the newest report of each, gaps and restarts counted, garbage survived, all of it bounded."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from dualmap_rebalancer.metrics import Metrics
from dualmap_rebalancer.telemetry import Telemetry
from dualmap_service.curve import InTheClear
from dualmap_service.registry import Member, Membership
from dualmap_service.store import Store
from dualmap_wire.telemetry import QUEUE_TOPIC, RunningReport, encode_report

from ...waiting import eventually
from .conftest import Start, perf_of
from .recording_worker import POOL, RecordingWorker, queued


class Ears:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.telemetry = Telemetry(POOL, self.metrics, InTheClear())

    def follow(self, *workers: RecordingWorker, address: str | None = None) -> None:
        members = {}
        for worker in workers:
            registration = worker.registration()
            members[worker.name] = Member(registration, alive=True, perf=None)
        self.telemetry.follow(Membership(1, members))

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value("dualmap_rebalancer_" + name, labels) or 0.0

    async def hear(self, worker: RecordingWorker) -> None:
        """Connected: the worker's messages arrive. It is silent afterwards."""

        def heard() -> bool:
            self.telemetry.drain()
            return worker.name in self.telemetry.heard

        await eventually(heard)
        worker.silent = True
        await self.catch_up(worker)

    async def catch_up(self, worker: RecordingWorker) -> None:
        def caught_up() -> bool:
            self.telemetry.drain()
            heard = self.telemetry.heard.get(worker.name)
            return heard is not None and heard.seq == worker.seq

        await eventually(caught_up)


@pytest.fixture
def ears() -> Iterator[Ears]:
    ears = Ears()
    yield ears
    ears.telemetry.close()


async def test_preemptions_are_counted_once_each(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        await ears.hear(worker)
        # A worker counts from its start; one that starts again, from zero.
        for said, counted in ((2, 2), (2, 2), (5, 5), (1, 6)):
            worker.say(preemptions=said)
            await ears.catch_up(worker)
            assert ears.count("preemptions_total", instance="w1") == counted


async def test_gaps_and_restarts_are_counted(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        await ears.hear(worker)
        assert ears.count("telemetry_gaps_total") == 0
        worker.seq += 3
        worker.say(busy_s=1.5)
        await ears.catch_up(worker)
        assert ears.count("telemetry_gaps_total") == 3
        assert ears.telemetry.heard["w1"].report.busy_s == 1.5
        # A worker that started again: another generation, or at least a sequence that goes back.
        worker.seq = 0
        worker.say(generation=2)
        await ears.catch_up(worker)
        worker.seq = 0
        worker.say(busy_s=2.5)
        await eventually(lambda: ears.telemetry.drain() or ears.telemetry.heard["w1"].report.busy_s == 2.5)
        assert ears.count("telemetry_restarts_total") == 2
        assert ears.count("telemetry_gaps_total") == 3


def garbage(worker: RecordingWorker) -> Iterator[list[bytes]]:
    def report(**changes: Any) -> list[bytes]:
        fields = {name: getattr(worker.report, name) for name in worker.report.__struct_fields__}
        return [QUEUE_TOPIC, bytes(8), encode_report(type(worker.report)(**{**fields, **changes}))]

    good = encode_report(worker.report)
    yield [QUEUE_TOPIC]
    yield [QUEUE_TOPIC, bytes(8)]
    yield [QUEUE_TOPIC, bytes(7), good]
    yield [QUEUE_TOPIC + b"x", bytes(8), good]
    yield [QUEUE_TOPIC, bytes(8), good, b"more"]
    yield [QUEUE_TOPIC, bytes(8), b""]
    yield [QUEUE_TOPIC, bytes(8), good[:-3]]
    yield [QUEUE_TOPIC, bytes(8), b"\xff" * 100]
    yield [QUEUE_TOPIC, bytes(8), b"\x81\xa1" * 5000]
    yield report(instance="w2")
    yield report(pool="other")
    yield report(generation=-1)
    yield report(busy_s=math.nan)
    yield report(preemptible_s=math.nan)
    yield report(preemptions=-1)
    yield report(speed=(math.inf, 0.0, 0.0))
    yield report(running=RunningReport(router="a", charge_id="c", elapsed_s=1e300, cost_s=1.0, feasible=True))
    yield report(queued=(queued("r", waited_s=-math.inf),))


async def test_garbage_is_counted_and_survived(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        await ears.hear(worker)
        reports = ears.count("reports_total", instance="w1")
        sent = 0
        for frames in garbage(worker):
            worker.send(frames)
            sent += 1
        worker.publish()
        await ears.catch_up(worker)
        assert ears.count("telemetry_garbage_total") == sent
        assert ears.count("reports_total", instance="w1") == reports + 1


async def test_garbage_is_logged_once_a_second(
    ears: Ears, shared: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        await ears.hear(worker)
        for _ in range(200):
            worker.send([QUEUE_TOPIC, b"?"])
        await eventually(lambda: ears.telemetry.drain() or ears.count("telemetry_garbage_total") == 200)
        assert 1 <= sum(r.getMessage() == "telemetry.garbage" for r in caplog.records) <= 2


async def test_a_flood_is_read_in_bounded_steps(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        await ears.hear(worker)
        before = ears.count("reports_total", instance="w1")
        for _ in range(2000):
            worker.publish()
        ears.telemetry.drain()
        assert ears.count("reports_total", instance="w1") - before <= 64
        # The sockets' queues hold a bounded part of the flood; what was lost is counted.

        def settled() -> bool:
            ears.telemetry.drain()
            worker.publish()
            return ears.telemetry.heard["w1"].seq >= 2000

        await eventually(settled)
        heard = ears.telemetry.heard["w1"]
        taken = ears.count("reports_total", instance="w1") - before
        assert ears.count("telemetry_gaps_total") + taken >= heard.seq - 20


async def test_who_left_is_forgotten_and_a_new_address_is_followed(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as old, RecordingWorker(shared, "w2") as other:
        ears.follow(old, other)
        await ears.hear(old)
        await ears.hear(other)
        ears.follow(other)
        assert set(ears.telemetry.heard) == {"w2"}
        assert ears.count("reports_total", instance="w1") == 0
    async with RecordingWorker(shared, "w2", generation=2) as new:
        ears.follow(new)
        await eventually(
            lambda: ears.telemetry.drain() or ears.telemetry.heard["w2"].report.generation == 2,
        )


async def test_an_address_without_meaning_is_survived(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as bad, RecordingWorker(shared, "w2") as good:
        address, bad.telemetry_address = bad.telemetry_address, "nonsense"
        ears.follow(bad, good)
        await ears.hear(good)
        bad.telemetry_address = address
        ears.follow(bad, good)
        await ears.hear(bad)


async def test_the_service_goes_on_through_garbage(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start() as running:
        await eventually(lambda: perf_of(shared, "w1"))
        for frames in garbage(worker):
            worker.send(frames)
        worker.say(held=True)
        await running.above("telemetry_garbage_total", 10)

        async def folded() -> bool:
            perf = await perf_of(shared, "w1")
            return perf is not None and perf.held

        await eventually(folded)


async def test_age_and_work_are_read_when_scraped_and_go_with_the_instance(ears: Ears, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker:
        ears.follow(worker)
        # Never heard: it ages from when it was followed.
        await eventually(lambda: ears.count("instance_telemetry_age_seconds", instance="w1") > 0.0)
        await ears.hear(worker)
        worker.say(busy_s=1.5, queued=(queued("r1", own_s=2.0), queued("r2", own_s=0.5)), queued_total=2)
        await ears.catch_up(worker)
        assert ears.count("instance_work_seconds", instance="w1") == 4.0
        assert ears.count("instance_queued", instance="w1") == 2
        before_s = ears.count("instance_telemetry_age_seconds", instance="w1")
        # Silent: it grows, and is not what it was when the report came.
        await eventually(lambda: ears.count("instance_telemetry_age_seconds", instance="w1") > before_s + 0.1)
        ears.follow()
        for gone in ("telemetry_age_seconds", "work_seconds", "queued"):
            assert (
                ears.metrics.registry.get_sample_value(
                    f"dualmap_rebalancer_instance_{gone}", {"instance": "w1"}
                )
                is None
            )
