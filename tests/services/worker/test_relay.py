"""One request's way through a worker, in front of an engine on a real socket."""

from .conftest import Worker


async def test_a_whole_answer_to_a_request_for_a_stream_is_no_sample(worker: Worker) -> None:
    assert await worker.ended(worker.submit(streamed=True)) == ["head", "data", "end"]
    assert worker.admission.tracker.fit.num_samples == 0
