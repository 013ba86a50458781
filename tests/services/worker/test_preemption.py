"""A late prefill leaves the engine for a request that can be in time, and is answered once whatever happens."""

import asyncio

import pytest

from dualmap.samples import PrefillSamples
from dualmap_wire.telemetry import QueueReport
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.ownership import KvState
from dualmap_worker.telemetry import queue_report

from ...waiting import eventually
from .conftest import SocketEngine, Worker, whole

LONG = 100_000
EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


class Holding:
    """An engine that keeps long requests waiting until `release`, and answers the others at once."""

    def __init__(self, engine: SocketEngine) -> None:
        self._engine = engine
        self.release = asyncio.Event()
        self.starts: dict[str, int] = {}
        engine.says = self.says

    async def says(self, writer: asyncio.StreamWriter) -> bytes | None:
        head, body = self._engine.asked[-1]
        name = next(line[14:] for line in head if line.lower().startswith("x-request-id: "))
        times = self.starts[name] = self.starts.get(name, 0) + 1
        if body == b"long" and not self.release.is_set():
            # What an engine may say before its prefill is over must not reach the client either.
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n"
            )
            await writer.drain()
            return None
        return whole(f'{{"attempt": {times}, "usage": {{"prompt_tokens": 5}}}}'.encode())


def long_one(worker: Worker) -> int:
    return worker.submit(LONG, slo_s=1.0, body=b"long", streamed=True)


def answers(worker: Worker, stream: int) -> bytes:
    return b"".join(event.data for event in worker.events if event.stream == stream)


async def preempted(worker: Worker, engine: SocketEngine) -> tuple[int, int, Holding]:
    """(late stream, good stream, engine) where the late one waits again behind one that holds the engine."""
    holding = Holding(engine)
    late = long_one(worker)
    await eventually(lambda: holding.starts.get("r1") == 1)
    await asyncio.sleep(0.02)
    good = worker.submit(LONG, slo_s=1000.0, body=b"long", streamed=True)
    await eventually(lambda: holding.starts.get("r2") == 1)
    assert list(worker.admission.queue) == ["r1"]
    return late, good, holding


async def test_it_is_answered_once_after_who_can_be_in_time(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    late, good, holding = await preempted(worker, socket_engine)
    await eventually(lambda: socket_engine.open == 1)
    assert worker.kinds(late) == []
    holding.release.set()
    worker.requests.cancel(worker.outbox, good)
    assert await worker.ended(late) == ["head", "data", "end"]
    assert answers(worker, late).startswith(b'{"attempt": 2')
    assert holding.starts == {"r1": 2, "r2": 1}
    assert worker.admission.preemptions == 1


async def test_the_report_says_what_gives_way(worker: Worker, socket_engine: SocketEngine) -> None:
    holding = Holding(socket_engine)
    late = long_one(worker)
    await eventually(lambda: holding.starts)

    def report() -> QueueReport:
        now_s = asyncio.get_running_loop().time()
        return queue_report(worker.admission, worker.requests, now_s, "w", "p", 1, "active", 4.0, KvState())

    before = report()
    assert before.running is not None
    assert before.preemptions == 0
    # Half a step of 8,192 tokens, at least.
    assert before.running.gives_way_s is not None
    assert 0.4 < before.running.gives_way_s < 0.6
    assert before.preemptible_s == pytest.approx(before.busy_s - before.running.gives_way_s, abs=0.1)
    await asyncio.sleep(0.02)
    good = worker.submit(LONG, slo_s=1000.0, body=b"long", streamed=True)
    await eventually(lambda: holding.starts.get("r2") == 1)
    after = report()
    assert after.running is not None
    assert (after.running.gives_way_s, after.preemptible_s, after.preemptions) == (None, 0.0, 1)
    # Elsewhere it would begin anew.
    assert [(q.request_id, q.movable) for q in after.queued] == [("r1", False)]
    for stream in (late, good):
        worker.requests.cancel(worker.outbox, stream)


@pytest.mark.parametrize("moment", ["stopping", "waiting", "resumed"])
async def test_a_client_that_goes_away_at_any_moment_leaves_nothing(
    worker: Worker, socket_engine: SocketEngine, moment: str
) -> None:
    if moment == "stopping":
        holding = Holding(socket_engine)
        late = long_one(worker)
        await eventually(lambda: holding.starts)
        await asyncio.sleep(0.02)
        good = worker.submit(LONG, body=b"long")
        assert worker.admission.line[0].stopping
        worker.requests.cancel(worker.outbox, late)
        await eventually(lambda: holding.starts.get("r2") == 1)
    else:
        late, good, holding = await preempted(worker, socket_engine)
        if moment == "resumed":
            worker.requests.cancel(worker.outbox, good)
            await eventually(lambda: holding.starts["r1"] == 2)
        worker.requests.cancel(worker.outbox, late)
    assert not worker.admission.queue
    worker.requests.cancel(worker.outbox, good)
    await eventually(lambda: not len(worker.requests) and not socket_engine.open)
    assert worker.kinds(late) == []
    assert holding.starts["r1"] == (2 if moment == "resumed" else 1)


@pytest.mark.parametrize("moment", ["stopping", "waiting"])
@pytest.mark.parametrize("end", ["drain", "lose_engine"])
async def test_a_worker_that_starts_nothing_more_gives_it_back(
    worker: Worker, socket_engine: SocketEngine, moment: str, end: str
) -> None:
    if moment == "stopping":
        holding = Holding(socket_engine)
        late = long_one(worker)
        await eventually(lambda: holding.starts)
        await asyncio.sleep(0.02)
        good = worker.submit(LONG, body=b"long")
        assert worker.admission.line[0].stopping
    else:
        late, good, holding = await preempted(worker, socket_engine)
    getattr(worker.requests, end)()
    kind = pb.Failed.DRAINING if end == "drain" else pb.Failed.ENGINE_LOST
    assert await worker.ended(late) == ["failed"]
    assert worker.failure(late).kind == kind
    # One that has left the engine is not what that died of.
    assert worker.failure(late).begun == (end == "lose_engine" and moment == "stopping")
    if end == "lose_engine" or moment == "stopping":
        assert await worker.ended(good) == ["failed"]
    worker.requests.cancel(worker.outbox, good)
    await eventually(lambda: not socket_engine.open)
    assert holding.starts["r1"] == 1


async def test_one_that_waits_again_moves_like_any_other_if_told(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    late, good, _ = await preempted(worker, socket_engine)
    assert worker.requests.move("r1", "w2")
    assert await worker.ended(late) == ["moved"]
    assert not worker.requests.move("r1", "w2")
    worker.requests.cancel(worker.outbox, good)


async def test_first_bytes_that_race_with_the_abort_are_answered_once(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    go = asyncio.Event()

    async def says(_: asyncio.StreamWriter) -> bytes | None:
        await go.wait()
        return whole(EVENT + b"data: [DONE]\n\n", "text/event-stream")

    socket_engine.says = says
    for turns in range(30):
        go.clear()
        asked = len(socket_engine.asked)
        late = long_one(worker)
        await eventually(lambda asked=asked: len(socket_engine.asked) > asked)
        await asyncio.sleep(0.02)
        go.set()
        # Engine and worker share this loop: each turn is another moment between its write and our reading it.
        for _ in range(turns):
            await asyncio.sleep(0)
        good = worker.submit(100, streamed=True)
        for stream in (late, good):
            kinds = await worker.ended(stream)
            assert kinds == ["head", *["data"] * (len(kinds) - 2), "end"]
            assert answers(worker, stream) == EVENT + b"data: [DONE]\n\n"
        # Forget what these odd prefills taught, so that the next long one is late again.
        worker.admission._samples = PrefillSamples()
        await asyncio.wait_for(worker.requests.idle.wait(), 5)
    # Both ways of the race were taken.
    assert 0 < worker.admission.preemptions < 30
