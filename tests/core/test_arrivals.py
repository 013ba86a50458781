"""Who is next by the short cut is who is next in the whole order, and is charged the same."""

import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.admission import Admission
from dualmap.arrivals import Arrivals
from dualmap.job import Job
from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderRule, QueuedRequest, charge
from dualmap.types import PrefillSpeed

SPEED = PrefillSpeed(0.0, 1e-4, 0.0)


class Checked(Admission):
    """Works out the whole order as well, each time."""

    def _first(self, now_s: float, speed: PrefillSpeed) -> tuple[list[QueuedRequest], bool]:
        waiting, feasible = super()._first(now_s, speed)
        entries = self._ordered(now_s, speed)
        whole = [entry.request for entry in entries]
        assert (waiting[0], feasible) == (whole[0], entries[0].feasible)
        rule = self._rule
        assert charge(self.deficits, waiting[0], waiting, now_s, rule) == charge(
            self.deficits, whole[0], whole, now_s, rule
        )
        return waiting, feasible


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "add", "take", "byte", "stopped", "wait")),
        st.integers(0, 30),
        st.floats(0.0, 2.0),
    ),
    max_size=80,
)


@given(STEPS, st.sampled_from(((0,), (0, 1))), st.sampled_from((("",), ("a",), ("a", "b"), ("", "a"))))
def test_the_short_cut_leads_to_the_first_of_the_order(
    steps: list[tuple[str, int, float]], priorities: Sequence[int], tenants: Sequence[str]
) -> None:
    rule = OrderRule(age_bound_s=6.0)
    adm, now_s = Checked(rule, 2048, 4, 0.97, PreemptRule(min_s=0.01, min_run_s=0.01)), 100.0
    inside: list[Job] = []
    stopping: list[Job] = []
    for number, (what, which, after_s) in enumerate(steps):
        now_s += after_s
        if what == "add":
            job = Job(
                f"r{number}", now_s - which / 10, 500 + which * 1000, which * 20, 0.5 + which % 4,
                priority=priorities[which % len(priorities)], tenant=tenants[which % len(tenants)],
            )  # fmt: skip
            job.start = lambda job=job: inside.append(job)
            job.stop = lambda job=job: stopping.append(job)
            adm.add(job)
        elif what == "take" and adm.queue:
            adm.take(sorted(adm.queue)[which % len(adm.queue)])
        elif what == "byte" and inside:
            job = inside.pop(which % len(inside))
            adm.first_byte(job, now_s)
            adm.finish(job, now_s)
        elif what == "stopped" and stopping:
            job = stopping.pop(0)
            if job in inside:
                inside.remove(job)
                adm.requeue(job, now_s)
        adm.admit(now_s)


def waiting(*jobs: Job) -> Arrivals:
    arrivals = Arrivals()
    for job in jobs:
        arrivals.add(job)
    return arrivals


def job(name: str, arrival_s: float, tokens: int = 10_000, slo_s: float = 5.0, tenant: str = "") -> Job:
    return Job(name, arrival_s, tokens, 0, slo_s, tenant=tenant)


def test_the_hopeless_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [job(f"old{number}", number / 1000) for number in range(1000)]
    young = job("young", 10.0)
    arrivals = waiting(*old, young)
    assert arrivals.oldest_in_time(10.0, 10.0, SPEED) is young
    weighed: list[str] = []

    def own_s(self: Job, speed: PrefillSpeed) -> float:
        weighed.append(self.request_id)
        return 1.0

    monkeypatch.setattr(Job, "own_s", own_s)
    assert arrivals.oldest_in_time(10.1, 10.1, SPEED) is young
    assert weighed == ["young"]
    assert arrivals.oldest() is old[0], "they are still there"


def test_who_left_and_came_again_is_there_once() -> None:
    first, second = job("first", 1.0), job("second", 2.0)
    arrivals = waiting(first, second)
    arrivals.remove(first)
    assert arrivals.oldest() is second
    arrivals.add(first)
    assert arrivals.oldest() is arrivals.oldest_in_time(2.0, 2.0, SPEED) is first
    arrivals.remove(first)
    assert arrivals.oldest() is arrivals.oldest_in_time(2.0, 2.0, SPEED) is second


def test_places_of_who_left_are_cleared() -> None:
    arrivals = waiting(oldest := job("oldest", 0.0, slo_s=0.1))
    for number in range(10_000):
        arrivals.add(one := job(str(number), 1.0 + number, slo_s=0.1))
        arrivals.oldest_in_time(5.0 + number, 5.0 + number, SPEED)
        arrivals.remove(one)
    assert arrivals.oldest() is oldest
    assert len(arrivals._hopeful) + len(arrivals._hopeless) < 200


def test_alike() -> None:
    ours, theirs = job("ours", 1.0, tenant="a"), job("theirs", 2.0, tenant="b")
    arrivals = waiting(ours)
    assert arrivals.alike
    arrivals.add(theirs)
    assert not arrivals.alike
    arrivals.remove(ours)
    assert arrivals.alike


def test_who_has_left_is_not_held() -> None:
    """A place may stay until it is looked at again, whoever had it, and the body with him, not."""
    arrivals, starts = Arrivals(), []
    for number in range(60):
        job = Job(str(number), float(number), 100, 0, 1.0, start=lambda: None)
        starts.append(weakref.ref(job.start))
        arrivals.add(job)
        arrivals.remove(job)
    del job
    assert not any(start() for start in starts)
