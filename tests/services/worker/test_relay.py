"""One request's way through a worker, in front of an engine on a real socket."""

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
