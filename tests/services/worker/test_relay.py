"""One request's way through a worker, in front of an engine on a real socket."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable

import pytest

from dualmap.queue_order import OrderName
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.engine import Engine
from dualmap_worker.ownership import KvState
from dualmap_worker.telemetry import queue_report

from ...waiting import eventually
from .conftest import SocketEngine, Worker, whole


async def test_a_whole_answer_to_a_request_for_a_stream_is_no_sample(worker: Worker) -> None:
    assert await worker.ended(worker.submit(streamed=True)) == ["head", "data", "end"]
    assert worker.admission.tracker.fit.num_samples == 0


async def test_headers_that_repeat_reach_the_engine(worker: Worker, socket_engine: SocketEngine) -> None:
    pairs = [("x-tag", "a"), ("accept", "text/event-stream"), ("x-tag", "b"), ("X-Request-Id", "other")]
    headers = [pb.Header(name=name, value=value) for name, value in pairs]
    await worker.ended(worker.submit(headers=headers))
    [(head, _)] = socket_engine.asked
    sent = [tuple(line.lower().split(": ", 1)) for line in head[1:]]
    assert [value for name, value in sent if name == "x-tag"] == ["a", "b"]
    assert [value for name, value in sent if name == "x-request-id"] == ["r1"]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (b"", pb.Failed.ENGINE_LOST, "the engine was lost"),
        (b"lorem ipsum\r\n\r\n", pb.Failed.BAD_ANSWER, "the engine broke HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", pb.Failed.ENGINE_LOST, "the engine was lost"),
    ],
)
async def test_a_failure_names_no_address_but_the_log_does(
    worker: Worker,
    socket_engine: SocketEngine,
    caplog: pytest.LogCaptureFixture,
    answer: bytes,
    kind: "pb.Failed.Kind.ValueType",
    said: str,
) -> None:
    async def says(_: asyncio.StreamWriter) -> bytes:
        return answer

    socket_engine.says = says
    with caplog.at_level(logging.WARNING):
        stream = worker.submit()
        await worker.ended(stream)
    failed = worker.failure(stream)
    assert (failed.kind, failed.message) == (kind, said)
    [record] = [record for record in caplog.records if record.getMessage() == "relay.engine_failed"]
    assert socket_engine.url in record.__dict__["error"]


async def test_an_engine_that_is_gone_names_no_address(worker: Worker, socket_engine: SocketEngine) -> None:
    worker.requests.engine.url = "http://127.0.0.1:1"
    stream = worker.submit()
    assert await worker.ended(stream) == ["failed"]
    assert worker.failure(stream).message == "the engine was lost"


def silent(_: asyncio.StreamWriter) -> Awaitable[None]:
    return asyncio.sleep(0)


EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


async def endless(writer: asyncio.StreamWriter) -> bytes:
    """A stream that goes on until its connection is cut."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(EVENT * 20)
        await writer.drain()
        await asyncio.sleep(0.001)


async def test_a_session_that_is_lost_stops_what_runs_and_what_waits(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    socket_engine.says = endless
    running = worker.submit(tokens=100_000, streamed=True)
    await eventually(lambda: "data" in worker.kinds(running))
    silent_one = worker.submit(tokens=100_000, streamed=True)
    waiting = worker.submit(tokens=100_000, streamed=True)
    assert (len(worker.requests), len(worker.admission.queue)) == (3, 1)
    worker.outbox.close()
    worker.requests.cancel_all(worker.outbox)
    await eventually(lambda: not len(worker.requests) and not socket_engine.open)
    assert not {"end", "failed"} & set(
        worker.kinds(running) + worker.kinds(silent_one) + worker.kinds(waiting)
    )


async def test_a_router_that_reads_nothing_holds_the_stream_back(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    socket_engine.says = endless
    worker.gate.clear()
    stream = worker.submit(streamed=True)
    await eventually(lambda: worker.outbox.buffered_bytes > 1 << 20)
    await asyncio.sleep(0.1)
    assert worker.outbox.buffered_bytes < (1 << 20) + (1 << 18)
    worker.requests.cancel(worker.outbox, stream)
    await eventually(lambda: not socket_engine.open)


async def test_a_request_cancelled_in_the_moment_it_starts(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    stream = worker.submit()
    worker.requests.cancel(worker.outbox, stream)
    await eventually(lambda: not len(worker.requests))
    assert (worker.kinds(stream), socket_engine.asked) == ([], [])


async def test_draining_hands_back_what_waits_and_finishes_what_runs(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    socket_engine.says = silent
    running, waiting = worker.submit(tokens=100_000), worker.submit(tokens=100_000)
    assert worker.requests.drain() == 1
    late = worker.submit()
    for stream in (waiting, late):
        assert await worker.ended(stream) == ["failed"]
        assert worker.failure(stream).kind == pb.Failed.DRAINING
    assert not worker.requests.idle.is_set()
    worker.requests.cancel(worker.outbox, running)


async def test_an_engine_that_is_lost_gives_back_what_it_has_not_answered(
    worker: Worker, socket_engine: SocketEngine
) -> None:
    fine, socket_engine.says = socket_engine.says, endless
    streaming = worker.submit(tokens=100_000, streamed=True)
    await eventually(lambda: "data" in worker.kinds(streaming))
    socket_engine.says = silent
    hanging, waiting = worker.submit(tokens=100_000), worker.submit(tokens=100_000)
    await eventually(lambda: socket_engine.open == 2)
    assert worker.requests.lose_engine() == 2
    late = worker.submit()
    for stream in (hanging, waiting, late):
        assert await worker.ended(stream) == ["failed"]
        assert worker.failure(stream).kind == pb.Failed.ENGINE_LOST
        # Only what the engine had may be what it died of.
        assert worker.failure(stream).begun == (stream == hanging)
    # The stream goes on, and nothing that was given back was started.
    await eventually(lambda: len(worker.requests) == 1 and socket_engine.open == 1)
    assert len(socket_engine.asked) == 2
    seen = len(worker.kinds(streaming))
    await eventually(lambda: len(worker.kinds(streaming)) > seen)
    worker.requests.engine_away = False
    socket_engine.says = fine
    assert (await worker.ended(worker.submit()))[-1] == "end"
    worker.requests.cancel(worker.outbox, streaming)


async def test_a_host_that_does_not_answer_a_connection_is_lost_not_late(worker: Worker) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # Its backlog is full: the kernel drops further connections without a word, as a host does that is gone.
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        worker.requests.engine.url = f"http://127.0.0.1:{full.getsockname()[1]}"
        stream = worker.submit()
        assert (await worker.ended(stream))[-1] == "failed"
    assert worker.failure(stream).kind == pb.Failed.ENGINE_LOST
    assert not worker.failure(stream).begun


async def test_the_queue_is_bounded(worker: Worker, socket_engine: SocketEngine) -> None:
    socket_engine.says = silent
    streams = [worker.submit(tokens=100_000) for _ in range(10)]
    # One runs, eight wait, and the last is refused.
    assert await worker.ended(streams[-1]) == ["failed"]
    assert worker.failure(streams[-1]).kind == pb.Failed.QUEUE_FULL
    assert len(worker.admission.queue) == 8
    # One that needs no prefill has no queue to wait in.
    socket_engine.says = socket_engine._fine
    assert await worker.ended(worker.submit(queued=False)) == ["head", "data", "end"]
    worker.requests.cancel_all(worker.outbox)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_engine_that_says_it_died_is_lost(
    worker: Worker, socket_engine: SocketEngine, begun: bool
) -> None:
    death = b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\ndata: [DONE]\n\n'

    async def dies(_: asyncio.StreamWriter) -> bytes:
        return whole((EVENT if begun else b"") + death, "text/event-stream")

    socket_engine.says = dies
    stream = worker.submit(streamed=True)
    assert await worker.ended(stream) == (["head", "data", "failed"] if begun else ["failed"])
    assert (worker.failure(stream).kind, worker.failure(stream).begun) == (pb.Failed.ENGINE_LOST, True)


@pytest.mark.parametrize("order", ["late-last", "dlpm"])
async def test_a_queue_shares_between_tenants_as_routers_name_them(
    socket_engine: SocketEngine, order: OrderName
) -> None:
    """A tenant that asks once comes before the rest of one that asked for much."""
    engine = Engine(socket_engine.url, "", 30.0, 64)
    await engine.open()
    worker, release = Worker(engine, max_queued=64, order=order), asyncio.Event()
    writer = asyncio.create_task(worker.outbox.drain(worker.write))

    async def held(_: asyncio.StreamWriter) -> bytes:
        await release.wait()
        return whole(b'{"usage": {"prompt_tokens": 5}}')

    socket_engine.says = held
    streams = [worker.submit(tokens=30_000, tenant="flood") for _ in range(12)]
    streams.append(worker.submit(tokens=100, tenant="quiet"))
    assert {job.tenant for job in worker.admission.queue.values()} == {"flood", "quiet"}
    now_s = asyncio.get_running_loop().time()
    report = queue_report(worker.admission, worker.requests, now_s, "w", "p", 1, "active", 4.0, KvState())
    assert {queued.tenant for queued in report.queued} == {"flood", "quiet"}
    assert report.tenants_left_s["flood"] < 0.0 and report.tenants_left_s.keys() <= {"flood", "quiet"}
    release.set()
    for stream in streams:
        await worker.ended(stream)
    ids = [
        line[14:]
        for head, _ in socket_engine.asked
        for line in head
        if line.lower().startswith("x-request-id: ")
    ]
    assert ids.index(f"r{streams[-1]}") < 6, ids
    await asyncio.wait_for(worker.requests.idle.wait(), 10)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    worker.requests.close()
    await engine.close()


async def test_a_stream_in_use_is_not_taken_twice(worker: Worker, socket_engine: SocketEngine) -> None:
    socket_engine.says = silent
    stream = worker.submit(tokens=100_000)
    worker._streams -= 1
    assert worker.submit(tokens=100_000) == stream
    assert len(worker.requests) == 1
    # The first can still be stopped, and with it everything.
    worker.requests.cancel(worker.outbox, stream)
    await eventually(lambda: worker.requests.idle.is_set() and not socket_engine.open)
