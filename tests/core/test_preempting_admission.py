"""Admission stops a late prefill for a request that can be in time; time is passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap.preempt import PreemptRule
from dualmap.queue_order import Deficits, OrderRule

LONG = 100_000


class Engine:
    """Jobs of an admission, and what was started and stopped of them."""

    def __init__(self, preempt: PreemptRule = PreemptRule(), max_running: int = 256) -> None:
        self.admission = Admission(OrderRule(), 2048, max_running, 0.97, preempt)
        self.inside: list[Job] = []
        self.stopping: list[Job] = []

    def arrives(
        self,
        name: str,
        now_s: float,
        tokens: int = 1000,
        slo_s: float = 5.0,
        streamed: bool = True,
        tenant: str = "",
    ) -> Job:
        job = Job(name, now_s, tokens, 0, slo_s, tenant=tenant, streamed=streamed)
        job.start = lambda: self.inside.append(job)
        job.stop = lambda: self.stopping.append(job)
        self.admission.add(job)
        return job

    def out(self, now_s: float) -> Job:
        """The engine has let go of what was stopped first."""
        job = self.stopping.pop(0)
        self.inside.remove(job)
        self.admission.requeue(job, now_s)
        return job

    def first_byte(self, job: Job, now_s: float) -> None:
        self.admission.first_byte(job, now_s)

    def ends(self, job: Job, now_s: float, *usage: int | None) -> None:
        self.inside.remove(job)
        self.admission.finish(job, now_s, *usage)  # type: ignore[arg-type]


def test_a_late_head_gives_way_and_resumes_from_what_it_computed() -> None:
    engine = Engine()
    adm = engine.admission
    late = engine.arrives("late", 0.0, LONG)
    adm.admit(0.0)
    good = engine.arrives("good", 4.0, 5000)
    adm.admit(4.0)
    assert engine.stopping == [late]
    # Until the engine has let it go nothing else happens, and it is stopped once.
    adm.admit(4.001)
    assert (engine.stopping, engine.inside, list(adm.queue)) == ([late], [late], ["good"])
    cost_s = late.own_s(adm.speed(4.002))
    engine.out(4.002)
    adm.admit(4.002)
    assert (engine.inside, list(adm.queue), adm.running) == ([good], ["late"], {"good"})
    # A share of the tokens that is no more than the share of the time, in whole blocks.
    assert 0 < late.cached_tokens <= LONG * 4.002 / cost_s
    assert late.cached_tokens % 128 == 0
    assert (late.arrival_s, late.started_s, late.preemptions, adm.preemptions) == (0.0, None, 1, 1)
    engine.first_byte(good, 4.5)
    adm.admit(4.5)
    assert engine.inside == [good, late]
    assert late.own_s(adm.speed(4.5)) < cost_s - 2.0


def test_a_run_lasts_its_least_time_and_the_timer_knows() -> None:
    engine = Engine()
    engine.arrives("late", 0.0, LONG)
    engine.admission.admit(0.0)
    engine.arrives("good", 0.1)
    assert engine.admission.admit(0.1) == pytest.approx(0.15)
    assert engine.stopping == []
    engine.admission.admit(0.25)
    assert len(engine.stopping) == 1


@pytest.mark.parametrize(
    ("rule", "slo_s"),
    [(PreemptRule(enabled=False), 5.0), (PreemptRule(max_times=0), 5.0), (PreemptRule(), 90.0)],
)
def test_who_does_not_give_way(rule: PreemptRule, slo_s: float) -> None:
    engine = Engine(rule)
    engine.arrives("long", 0.0, LONG, slo_s)
    engine.admission.admit(0.0)
    engine.arrives("good", 4.0)
    engine.admission.admit(4.0)
    assert engine.stopping == []


def test_an_engine_that_holds_admissions_has_nothing_stopped() -> None:
    engine = Engine(max_running=1)
    engine.arrives("late", 0.0, LONG)
    engine.admission.admit(0.0)
    engine.arrives("good", 4.0)
    engine.admission.admit(4.0)
    assert engine.admission.held
    assert engine.stopping == []


def test_the_step_of_what_was_stopped_teaches_nothing_and_makes_nobody_look_slow() -> None:
    engine = Engine()
    adm = engine.admission
    late = engine.arrives("late", 0.0, LONG)
    adm.admit(0.0)
    good, next_one = engine.arrives("good", 4.0), engine.arrives("next", 4.0)
    adm.admit(4.0)
    engine.out(4.0)
    adm.admit(4.0)
    assert engine.inside[:2] == [good, next_one]
    # The engine ends the step that it was in: two seconds, thirty times what `good` takes.
    assert good.own_s(adm.speed(6.0)) == pytest.approx(good.own_s(adm.tracker.speed()))
    engine.first_byte(good, 6.2)
    engine.first_byte(next_one, 6.2)
    adm.admit(6.2)
    engine.ends(good, 6.3, 1000, 0)
    engine.ends(next_one, 6.3, 1000, 0)
    assert (adm.tracker.fit.num_samples, adm.tracker.factor) == (0, 1.0)
    # What resumes is a sample of what it really computed in its last run.
    engine.first_byte(late, 16.2)
    engine.ends(late, 17.0, LONG, 40_000)
    assert late.computed == (60_000, 40_000)
    assert adm.tracker.fit.num_samples == 1
    assert adm.tracker.fit.speed.prefill_s(60_000, 40_000) == pytest.approx(10.0, rel=0.05)


def test_an_unstreamed_one_resumes_too_and_tells_its_router_once() -> None:
    engine = Engine()
    adm = engine.admission
    late = engine.arrives("late", 0.0, LONG, streamed=False)
    told: list[str] = []
    late.prefilled = lambda: told.append("late")
    adm.admit(0.0)
    good = engine.arrives("good", 4.0)
    adm.admit(4.0)
    # Its estimate passes while it is being stopped: that is no end of its prefill.
    adm.admit(60.0)
    assert (engine.stopping, told) == ([late], [])
    engine.out(60.0)
    adm.admit(60.0)
    engine.first_byte(good, 60.1)
    adm.admit(60.1)
    adm.admit(90.0)
    assert told == ["late"]
    engine.ends(late, 90.0, LONG, LONG - 1)
    engine.ends(good, 90.0, 1000, 0)
    assert (adm.queue, adm.line, adm.running) == ({}, [], set())


def test_a_late_head_keeps_the_engine_while_its_tenant_has_a_turn_and_the_timer_knows() -> None:
    engine = Engine()
    adm = engine.admission
    late = engine.arrives("late", 0.0, LONG, tenant="x")
    adm.admit(0.0)
    # 1. y has just had its turn: x has the engine until it has used up its own.
    own_s = late.own_s(adm.speed(0.0))
    adm.deficits = Deficits({"y": -0.5, "x": 1.0 - own_s})
    engine.arrives("good", 0.1, tenant="y")
    [giving_way] = adm.in_hand(0.1).line.giving_way
    again_s = adm.admit(0.1)
    assert engine.stopping == []
    # Nobody has more than a quantum left, and two rounds more only pay what y overdrew.
    assert 0.9 - giving_way.stop_s > 0.25
    assert again_s == pytest.approx(0.25 + 2 * 0.25)
    # 2. Once x has used up its turn, y has its own; what was left undone is given back.
    now_s = 0.1 + again_s
    while not engine.stopping:
        now_s += 0.01
        adm.admit(now_s)
        assert now_s < 2.0
    charged_s = adm.deficits.left_s["x"]
    engine.out(now_s)
    assert charged_s + own_s - now_s - 1.0 < adm.deficits.left_s["x"] <= -0.5
    adm.admit(now_s)
    assert [job.request_id for job in engine.inside] == ["good"]


@given(
    works=st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from([500, 4000, 20_000, 90_000]), st.floats(0.0, 1.5)),
        min_size=2,
        max_size=24,
    ),
    tick_s=st.sampled_from([0.05, 0.3]),
)
def test_nobody_is_preempted_only_to_start_again_at_once(
    works: list[tuple[str, int, float]], tick_s: float
) -> None:
    """A serial engine, exact estimates: whoever is stopped sees another start first; all are served in the end."""
    engine = Engine(PreemptRule(min_run_s=0.1))
    adm, now_s, due_s = engine.admission, 0.0, 0.0
    due: list[tuple[float, str, int]] = []
    for tenant, tokens, gap_s in works:
        due_s += gap_s
        due.append((due_s, tenant, tokens))
    left_s: dict[str, float] = {}
    for _ in range(60_000):
        while due and due[0][0] <= now_s:
            _, tenant, tokens = due.pop(0)
            engine.arrives(f"{len(due)}{tenant}", now_s, tokens, tenant=tenant)
        adm.admit(now_s)
        if engine.stopping:
            stopped = engine.out(now_s)
            left_s.pop(stopped.request_id, None)
            already = list(engine.inside)
            adm.admit(now_s)
            began = [job for job in engine.inside if job not in already]
            assert not began or began[0] is not stopped
        if not (due or engine.inside or adm.queue):
            break
        if engine.inside:
            head = adm.line[0] if adm.line else engine.inside[0]
            left_s.setdefault(head.request_id, head.own_s(adm.tracker.speed()))
            left_s[head.request_id] -= tick_s
            now_s += tick_s
            if left_s[head.request_id] <= 0.0:
                adm.first_byte(head, now_s)
                engine.inside.remove(head)
                adm.finish(head, now_s)
        else:
            now_s += tick_s
    assert not (due or engine.inside or adm.queue)
    assert adm.deficits.left_s.keys() <= {"x", "y", "z"}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["long", "good", "whole", "take", "byte", "end", "cancel", "out", "out", "tick"]),
        st.integers(0, 30),
        st.floats(0.0, 3.0),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_it_ends_empty(steps: list[tuple[str, int, float]]) -> None:
    engine, now_s, seen = Engine(PreemptRule(max_times=3)), 0.0, dict[str, Job]()
    adm = engine.admission

    def leave(job: Job, known: bool) -> None:
        if job in engine.stopping:
            engine.stopping.remove(job)
        engine.ends(job, now_s, *((job.prompt_tokens, 0) if known else ()))

    for number, (what, which, after_s) in enumerate(steps):
        now_s += after_s
        if what in ("long", "good", "whole"):
            tokens = 1000 if what == "good" else 40_000 + which * 5000
            seen[f"r{number}"] = engine.arrives(
                f"r{number}", now_s, tokens, streamed=what != "whole", tenant="xy"[which % 2]
            )
        elif what == "take" and adm.queue:
            assert adm.take(sorted(adm.queue)[which % len(adm.queue)]) is not None
        elif what == "out" and engine.stopping:
            engine.out(now_s)
        elif what == "byte" and (moving := [job for job in engine.inside if job not in engine.stopping]):
            engine.first_byte(moving[which % len(moving)], now_s)
        elif what in ("end", "cancel") and engine.inside:
            leave(engine.inside[which % len(engine.inside)], what == "end")
        again_s = adm.admit(now_s)
        assert again_s is None or again_s > 0
        assert adm.running == {job.request_id for job in engine.inside}
        assert {job.request_id for job in adm.line} <= adm.running
        assert not adm.running & adm.queue.keys()
        assert len(engine.stopping) <= 1
        assert adm.line or adm.held or not adm.queue
        assert all(
            0 <= job.cached_tokens < job.prompt_tokens and job.preemptions <= 3 for job in seen.values()
        )
        assert adm.in_hand(now_s).busy_s >= -1e-9
        parts = adm.in_hand(now_s).line
        assert parts.blocking_s + parts.giving_way_s == pytest.approx(adm.in_hand(now_s).busy_s, abs=1e-6)

    for _ in range(4 * len(seen) + 1):
        now_s += 0.01
        while engine.stopping:
            engine.out(now_s)
        for job in list(engine.inside):
            engine.first_byte(job, now_s)
            leave(job, True)
        adm.admit(now_s)
    assert (adm.queue, adm.line, adm.running) == ({}, [], set())
