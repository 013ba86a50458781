"""The request log: bounded, without bodies, with the right ending."""

import gc
import weakref

import pytest

from dualmap.types import ChoiceRule, Reason
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.placement import Placed
from dualmap_router.prompt import Prompt
from dualmap_router.ui.request_log import MAX_ENDED, RequestLog
from dualmap_router.ui.requests import request_view
from dualmap_wire.redis_functions import weigh

PROMPT = Prompt("m", [1, 2], b"", None, 8192, 2048, 4096, 1024.0, True)


class NoTraces:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def begin(self, flight: Flight, traceparent: str | None) -> None:
        self.seen.append("begin")

    def end(self, flight: Flight, error: BaseException | None) -> None:
        self.seen.append("end")


class Sink:
    answered, status = False, 502

    async def head(self, *_: object) -> None: ...
    async def data(self, chunk: bytes) -> None: ...
    async def end(self) -> None: ...
    async def broken(self, message: str) -> None: ...


def placed(instance: str, reason: Reason = Reason.AFFINITY) -> Placed:
    weighed = [weigh("w1", 2, 0.5, 0.1), weigh("w2", 0, 0.25, 0.5)]
    return Placed(
        "c", instance, "w2", reason, ("w1", "w2"), True, 2, 2047, 0, 0.1, 0.6, True, 7, weighed
    )  # fmt: skip


def flight(request_id: str = "id", prompt: Prompt | None = PROMPT) -> Flight:
    path = "/v1/chat/completions"
    return Flight(request_id, "POST", path, path, [], b"", 100.0, Sink(), model="m", prompt=prompt, slo_s=5.0)


def flown(log: RequestLog, error: BaseException | None = None, **facts: object) -> Flight:
    one = flight()
    log.begin(one, None)
    for name, value in facts.items():
        setattr(one.sink if name in ("answered", "status") else one, name, value)
    log.end(one, error)
    return one


@pytest.mark.parametrize(
    ("error", "facts", "status", "outcome"),
    [
        (None, {"answered": True, "status": 200}, 200, "answered"),
        (None, {"answered": True, "status": 400}, 400, "failed"),
        (ApiError(429, "later"), {}, 429, "failed"),
        (ClientGoneError(), {"answered": True, "status": 200}, 200, "left"),
        (ClientGoneError(), {}, 0, "left"),
        (None, {"answered": True, "status": 200, "interrupted": True}, 200, "cut"),
        (RuntimeError("a fault"), {}, 0, "failed"),
    ],
)
def test_how_a_request_ended(
    error: BaseException | None, facts: dict[str, object], status: int, outcome: str
) -> None:
    log = RequestLog(NoTraces())
    flown(log, error, **facts)
    (entry,) = log.ended(10)
    assert (entry.status, entry.outcome) == (status, outcome)
    assert log.num_in_flight == 0


def test_the_last_are_kept_but_no_flight_of_them() -> None:
    log = RequestLog(NoTraces())
    for number in range(MAX_ENDED + 10):
        one = flight(f"r{number}")
        # Whoever held the flight would hold its sink as well.
        held = weakref.ref(one.sink)
        log.begin(one, None)
        log.end(one, None)
        del one
    gc.collect()
    assert held() is None
    assert len(log.ended(10_000)) == MAX_ENDED
    assert log.ended(1)[0].request_id == f"r{MAX_ENDED + 9}"
    assert log.find("r5") is None
    assert log.find("r400") is not None


def test_what_waits_comes_before_what_answers() -> None:
    log = RequestLog(NoTraces())
    flights = [flight(name) for name in "abc"]
    for one in flights:
        log.begin(one, None)
    flights[0].sink.answered = True
    assert [(entry.request_id, entry.outcome) for entry in log.in_flight(3)] == [
        ("b", "waiting"),
        ("c", "waiting"),
        ("a", "answering"),
    ]
    assert len(log.in_flight(2)) == 2
    found = log.find("a")
    assert found is not None and found.outcome == "answering"


def test_what_needs_no_prefill_is_not_listed_but_traced() -> None:
    traces = NoTraces()
    log = RequestLog(traces)
    one = flight(prompt=None)
    log.begin(one, None)
    assert log.num_in_flight == 0
    log.end(one, None)
    assert not log.ended(1)
    assert traces.seen == ["begin", "end"]


def test_the_minutes_count_it() -> None:
    log = RequestLog(NoTraces())
    flown(log, placed=placed("w1"), reason=Reason.AFFINITY, ttft_s=6.0, answered=True, status=200)
    flown(log, ApiError(503, "none"))
    (entry, _) = reversed(log.ended(2))
    # First tokens are counted where they came: the flight says that it began long ago.
    buckets = log.buckets(entry.ended_s)
    assert sum(bucket.requests for bucket in buckets) == 2
    assert sum(bucket.failed for bucket in buckets) == 1
    assert sum(bucket.missed for bucket in buckets) == 1
    assert sum(bucket.instances["w1"] for bucket in buckets) == 1
    assert sum(bucket.reasons[Reason.AFFINITY] for bucket in buckets) == 1


def test_every_placement_is_explained() -> None:
    log = RequestLog(NoTraces())
    facts = {
        "earlier": (placed("w1"),),
        "placed": placed("w2", Reason.ONLY),
        "reason": Reason.MOVED,
        "moves": 1,
    }
    flown(log, answered=True, status=200, **facts)
    view = request_view(log.ended(1)[0], 200.0)
    assert [(step.instance, step.reason) for step in view.steps] == [("w1", "affinity"), ("w2", "moved")]
    first, second = view.steps[0].weighed
    assert (first.instance, first.cached_chunks, first.wait_s, first.own_s) == ("w1", 2, 0.5, 0.1)
    assert first.score == pytest.approx(0.5 + (1 + ChoiceRule().lambda_own) * 0.1)
    assert second.ttft_s == pytest.approx(0.75)
    assert (view.key, view.candidates) == ("0000000000000007", ["w1", "w2"])
