"""Admission with time passed in: busy but shallow, ordered, and empty at the end whatever happened between."""

import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap.queue_order import OrderRule
from dualmap.types import EngineLoad

AHEAD = 2048
LARGE = 20_000


def admission(max_running: int = 256, order: str = "late-last", ahead: int = AHEAD) -> Admission:
    return Admission(OrderRule(order, 60.0), ahead, max_running, 0.97)


class Started:
    """Jobs that tell when they start and when they are taken for prefilled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.prefilled: list[str] = []

    def job(self, name: str, now_s: float, tokens: int = LARGE, **fields: object) -> Job:
        return Job(
            name, now_s, tokens, 0, 1000.0,
            start=lambda: self.started.append(name),
            prefilled=lambda: self.prefilled.append(name),
            **fields,  # type: ignore[arg-type]
        )  # fmt: skip


def test_busy_but_shallow() -> None:
    adm, seen = admission(), Started()
    jobs = [seen.job(str(number), 0.0) for number in range(4)]
    for job in jobs:
        adm.add(job)
    again_s = adm.admit(0.0)
    # One large prefill is work enough; the rest can still be ordered and moved.
    assert seen.started == ["0"]
    assert list(adm.queue) == ["1", "2", "3"]
    # When the first is nearly done the next is let in, before the engine runs dry.
    cost_s = jobs[0].own_s(adm.speed(0.0))
    assert again_s is not None
    assert 0 < again_s < cost_s
    adm.admit(again_s * 0.9)
    assert seen.started == ["0"]
    adm.admit(again_s + 1e-6)
    assert seen.started == ["0", "1"]


def test_small_prefills_go_in_together() -> None:
    adm, seen = admission(), Started()
    for number in range(100):
        adm.add(seen.job(str(number), 0.0, tokens=64))
    adm.admit(0.0)
    assert 2 <= len(seen.started) < 100
    ahead_s = adm.tracker.speed().prefill_s(AHEAD, 0)
    assert adm.in_hand(0.0).busy_s <= ahead_s + adm.line[-1].own_s(adm.speed(0.0)) + 1e-9


def test_a_first_byte_lets_the_next_in() -> None:
    adm, seen = admission(), Started()
    jobs = [seen.job(str(number), 0.0) for number in range(3)]
    for job in jobs:
        adm.add(job)
    adm.admit(0.0)
    adm.first_byte(jobs[0], 1.0)
    adm.admit(1.0)
    assert seen.started == ["0", "1"]
    assert jobs[0].prefill_s == pytest.approx(1.0)
    assert adm.head_since_s() == 1.0
    assert adm.running == {"0", "1"}


def test_late_requests_wait_behind_feasible_ones() -> None:
    adm, seen = admission(), Started()
    late, good = seen.job("late", 0.0), seen.job("good", 1.0)
    late.slo_s = 0.01
    blocker = seen.job("blocker", 0.0)
    adm.add(blocker)
    adm.admit(0.0)
    adm.add(late)
    adm.add(good)
    assert [ordered.request.request_id for ordered in adm.ordered(1.0)] == ["good", "late"]
    adm.first_byte(blocker, 2.0)
    adm.admit(2.0)
    assert seen.started == ["blocker", "good"]


@pytest.mark.parametrize(("order", "started"), [("late-last", ["good"]), ("fcfs", ["good", "late"])])
def test_a_long_late_prefill_starts_alone(order: str, started: list[str]) -> None:
    """Beside the other it would fill the engine's step, and the other's first byte would wait for it."""
    adm, seen = admission(order=order), Started()
    late, good = seen.job("late", 0.1), seen.job("good", 0.0, tokens=100)
    late.slo_s = 0.01
    adm.add(good)
    adm.add(late)
    adm.admit(0.1)
    assert seen.started == started
    adm.first_byte(good, 0.2)
    adm.admit(0.2)
    assert seen.started == ["good", "late"]


def test_short_late_ones_share_a_step() -> None:
    adm, seen = admission(), Started()
    for name in ("a", "b", "c"):
        job = seen.job(name, 0.0, tokens=100)
        job.slo_s = 0.01
        adm.add(job)
    adm.admit(0.1)
    assert seen.started == ["a", "b", "c"]


def test_first_come_first_served_if_asked() -> None:
    adm, seen = admission(order="fcfs"), Started()
    late = seen.job("late", 0.0)
    late.slo_s = 0.01
    adm.add(late)
    adm.add(seen.job("good", 1.0))
    assert [ordered.request.request_id for ordered in adm.ordered(1.0)] == ["late", "good"]


def test_what_is_not_streamed_leaves_by_the_estimate() -> None:
    adm, seen = admission(), Started()
    jobs = [seen.job(str(number), 0.0, streamed=False) for number in range(2)]
    for job in jobs:
        adm.add(job)
    adm.admit(0.0)
    cost_s = jobs[0].own_s(adm.tracker.speed())
    adm.admit(cost_s * 0.9)
    assert seen.prefilled == []
    due_s = adm.admit(cost_s + 1e-6)
    assert seen.prefilled == ["0"]
    assert "0" in adm.running
    assert due_s is not None
    assert due_s > 0
    # Its first byte, when it has come, is no news.
    adm.first_byte(jobs[0], cost_s + 0.5)
    assert jobs[0].prefill_s is None
    adm.finish(jobs[0], cost_s + 0.6, 100, 0)
    assert "0" not in adm.running


@pytest.mark.parametrize(
    ("load", "held"),
    [
        (EngineLoad(), False),
        (EngineLoad(running=9, waiting=0, kv_use=1.0), False),
        (EngineLoad(running=9, waiting=3, kv_use=0.5), False),
        (EngineLoad(running=9, waiting=3, kv_use=0.98), True),
    ],
)
def test_an_engine_without_room_holds_admissions(load: EngineLoad, held: bool) -> None:
    adm, seen = admission(), Started()
    adm.load = load
    adm.add(seen.job("a", 0.0))
    adm.admit(0.0)
    assert adm.held is held
    assert seen.started == ([] if held else ["a"])


def test_at_most_so_many_run() -> None:
    adm, seen = admission(max_running=3), Started()
    jobs = [seen.job(str(number), 0.0, tokens=1) for number in range(5)]
    for job in jobs:
        adm.add(job)
    adm.admit(0.0)
    assert (seen.started, adm.held) == (["0", "1", "2"], True)
    # A first byte makes no room, only an end does.
    adm.first_byte(jobs[0], 0.1)
    adm.admit(0.1)
    assert len(seen.started) == 3
    adm.finish(jobs[0], 0.2)
    adm.admit(0.2)
    assert seen.started == ["0", "1", "2", "3"]


def test_taking_from_the_queue() -> None:
    adm, seen = admission(), Started()
    for name in ("a", "b"):
        adm.add(seen.job(name, 0.0))
    adm.admit(0.0)
    assert adm.take("a") is None
    assert adm.take("nobody") is None
    taken = adm.take("b")
    assert taken is not None
    assert taken.request_id == "b"
    assert adm.take("b") is None
    assert not adm.queue


def test_a_head_that_overruns_counts_at_once() -> None:
    adm, seen = admission(), Started()
    job = seen.job("a", 0.0)
    adm.add(job)
    adm.admit(0.0)
    expected = job.own_s(adm.speed(0.0))
    slow = adm.speed(expected * 5)
    assert job.own_s(slow) > expected * 4
    assert adm.in_hand(expected * 5).busy_s >= 0.0


def run_one(adm: Admission, job: Job, now_s: float, seconds: float, *usage: int | None) -> float:
    """A request alone in the engine, from its start to its end; returns when."""
    adm.add(job)
    adm.admit(now_s)
    adm.first_byte(job, now_s + seconds)
    adm.finish(job, now_s + seconds, *usage)  # type: ignore[arg-type]
    return now_s + seconds


def test_an_engine_that_never_tells_what_it_cached_is_taken_at_the_placements_word() -> None:
    adm, seen, now_s = admission(), Started(), 0.0
    speed = adm.tracker.speed()
    for number in range(40):
        job = seen.job(str(number), now_s, tokens=2000 + 500 * (number % 4))
        job.cached_tokens = 500 * (number % 3)
        usage = (job.prompt_tokens, None) if number % 2 else ()
        now_s = run_one(adm, job, now_s, 3 * job.own_s(speed), *usage)
    assert adm.tracker.fit.num_samples == 40
    assert adm.tracker.fit.speed.prefill_s(1000, 1000) == pytest.approx(
        3 * speed.prefill_s(1000, 1000), rel=0.05
    )


def test_an_engine_that_tells_leaves_out_what_is_zero() -> None:
    """As vLLM does: no detail in the usage means that nothing was cached, whatever was expected."""
    adm, seen = admission(), Started()
    now_s = run_one(adm, seen.job("a", 0.0, tokens=1000), 0.0, 0.5, 1000, 500)
    wrong = seen.job("b", now_s, tokens=1000)
    wrong.cached_tokens = 900
    now_s = run_one(adm, wrong, now_s, 1.0, 1000, None)
    assert wrong.computed == (1000, 0)
    assert adm.tracker.fit.num_samples == 2
    # One that ended without usage was cut off: it might have told, so nobody guesses.
    run_one(adm, seen.job("c", now_s, tokens=1000), now_s, 1.0)
    assert adm.tracker.fit.num_samples == 2


@pytest.mark.parametrize("slower", [0.3, 1.0, 4.0])
def test_unstreamed_answers_between_teach_no_wrong_speed(slower: float) -> None:
    """The engine is slower or faster than believed, and every other answer comes whole, after a long decode."""
    adm, seen, now_s = admission(ahead=100_000), Started(), 0.0
    speed = adm.tracker.speed()
    jobs = [seen.job(str(k), now_s, tokens=2000 + 1000 * k, streamed=k % 2 == 1) for k in range(4)]
    for job in jobs:
        adm.add(job)
    adm.admit(now_s)
    for job in jobs:
        now_s += slower * job.own_s(speed)
        adm.admit(now_s)
        if job.streamed:
            adm.first_byte(job, now_s)
    assert seen.prefilled == ["0", "2"]
    for job in jobs:
        adm.finish(job, now_s + 30.0, job.prompt_tokens, 0)
    # One sample for each pair: its sum was seen.
    assert adm.tracker.fit.num_samples == 2
    for tokens in (2000, 5000):
        expected_s = slower * speed.prefill_s(tokens, 0)
        assert adm.tracker.fit.speed.prefill_s(tokens, 0) == pytest.approx(expected_s, rel=0.05)


def test_unstreamed_answers_alone_teach_nothing_and_are_not_kept() -> None:
    adm, seen, now_s = admission(ahead=100_000), Started(), 0.0
    for number in range(200):
        adm.add(seen.job(str(number), now_s, streamed=False))
    while adm.queue or adm.line:
        now_s += max(adm.admit(now_s) or 0.0, 0.001)
    assert adm.tracker.fit.num_samples == 0
    assert len(adm._samples._unseen) <= 16


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "take", "byte", "finish", "abort", "load", "tick"]),
        st.integers(0, 30),
        st.floats(0.0, 3.0),
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 4), st.booleans())
def test_whatever_happens_it_ends_empty(
    steps: list[tuple[str, int, float]], max_running: int, streamed: bool
) -> None:
    adm, seen, now_s = admission(max_running), Started(), 0.0
    jobs: dict[str, Job] = {}
    gone: set[str] = set()

    def leave(job: Job, known: bool) -> None:
        gone.add(job.request_id)
        adm.finish(job, now_s, *((job.prompt_tokens, 0) if known else ()))

    for number, (what, which, after_s) in enumerate(steps):
        now_s += after_s
        inside = [jobs[name] for name in seen.started if name not in gone]
        if what == "add":
            name = f"r{number}"
            jobs[name] = seen.job(name, now_s, tokens=1 + which * 700, streamed=streamed or which % 2 == 0)
            adm.add(jobs[name])
        elif what == "take" and adm.queue:
            gone.add(sorted(adm.queue)[which % len(adm.queue)])
            assert adm.take(sorted(adm.queue)[which % len(adm.queue)]) is not None
        elif what == "byte" and inside:
            adm.first_byte(inside[which % len(inside)], now_s)
        elif what in ("finish", "abort") and inside:
            leave(inside[which % len(inside)], what == "finish")
        elif what == "load":
            adm.load = EngineLoad(which, which % 3, which / 30)
        again_s = adm.admit(now_s)
        assert again_s is None or again_s > 0
        # What is inside is accounted for, once, and no more than may run.
        assert adm.running == {name for name in seen.started if name not in gone}
        assert {job.request_id for job in adm.line} <= adm.running
        assert len(adm.running) <= max_running
        assert len(set(seen.started)) == len(seen.started)
        assert not adm.running & adm.queue.keys()
        assert adm.in_hand(now_s).busy_s >= -1e-9
        # Never idle while something waits and may start.
        assert adm.line or adm.held or not adm.queue

    adm.load = EngineLoad()
    for _ in range(len(jobs) + 1):
        for name in [name for name in seen.started if name not in gone]:
            now_s += 0.01
            adm.first_byte(jobs[name], now_s)
            leave(jobs[name], True)
        adm.admit(now_s)
    assert (adm.queue, adm.line, adm.running) == ({}, [], set())


@pytest.mark.parametrize(("freeze_s", "tokens"), [(1.5, 300), (5.0, 1500), (14.0, 1500)])
def test_one_freeze_is_soon_forgotten_by_a_busy_engine(freeze_s: float, tokens: int) -> None:
    """A worker that slept saw one prefill take as long: the next ones, as fast as ever, show that it was no more."""
    adm, now_s, done = admission(), 0.0, 0
    own_s = tokens / 10_000
    started: list[weakref.ref[Callable[[], None]]] = []

    def prefill(seconds: float) -> None:
        """The engine's first, while others wait behind it."""
        nonlocal now_s, done
        while len(adm.queue) < 4:
            adm.add(Job(f"{done}-{len(adm.queue)}-{now_s}", now_s, tokens, 0, 1000.0, start=lambda: None))
        adm.admit(now_s)
        job = adm.line[0]
        now_s += seconds
        adm.first_byte(job, now_s)
        adm.finish(job, now_s, prompt_tokens=tokens, cached_tokens=0)
        started.append(weakref.ref(job.start))
        done += 1

    for _ in range(100):
        prefill(own_s)
    prefill(own_s + freeze_s)
    for _ in range(60):
        prefill(own_s)
    expected_s = adm.tracker.speed().prefill_s(tokens, 0)
    assert expected_s == pytest.approx(own_s, rel=0.15)
    # Whole requests hang on jobs: those that are over are not held until the load ends.
    assert sum(start() is not None for start in started) < 20
