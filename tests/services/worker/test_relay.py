"""One request's way through a worker, in front of an engine on a real socket."""

import asyncio
import logging

import pytest

from dualmap_wire.v1 import worker_pb2 as pb

from .conftest import SocketEngine, Worker


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
