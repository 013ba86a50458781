"""Admission as a state machine: whatever a worker does in whatever order, no job is lost, doubled or left over."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap.preempt import PreemptRule
from dualmap.queue_order import ORDERS, OrderRule
from dualmap.types import EngineLoad

WHICH = st.integers(0, 99)
TOKENS = st.sampled_from([0, 1, 100, 3000, 60_000])


class AdmissionMachine(RuleBasedStateMachine):
    """The engine is two lists: what it holds, and what it was told to let go of."""

    @initialize(order=st.sampled_from(sorted(ORDERS)), max_running=st.integers(1, 6), times=st.integers(0, 3))
    def build(self, order: str, max_running: int, times: int) -> None:
        preempt = PreemptRule(max_times=times, min_run_s=0.01)
        self.admission = Admission(OrderRule(order), 2048, max_running, 0.97, preempt)  # type: ignore[arg-type]
        self.max_running = max_running
        self.now_s = 100.0
        self.jobs: list[Job] = []
        self.starts: dict[str, int] = {}
        self.inside: list[Job] = []
        self.stopping: list[Job] = []
        self.told: list[str] = []
        self.gone: set[str] = set()

    @rule(
        tokens=TOKENS,
        cached=TOKENS,
        slo_s=st.sampled_from([0.0, 0.5, 5.0, 1e9]),
        ago_s=st.sampled_from([0.0, 3.0, 500.0, -5.0]),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from(["", "a", "b"]),
        streamed=st.booleans(),
    )
    def add(
        self, tokens: int, cached: int, slo_s: float, ago_s: float, priority: int, tenant: str, streamed: bool
    ) -> None:
        name = f"r{len(self.jobs)}"
        job = Job(name, self.now_s - ago_s, tokens, cached, slo_s, priority, tenant, streamed)
        job.start = lambda: self._start(job)
        job.stop = lambda: self.stopping.append(job)
        job.prefilled = lambda: self.told.append(name)
        self.jobs.append(job)
        self.admission.add(job)

    def _start(self, job: Job) -> None:
        assert job not in self.inside, "started twice at a time"
        self.inside.append(job)
        self.starts[job.request_id] = self.starts.get(job.request_id, 0) + 1

    @rule(after_s=st.sampled_from([0.5, 4.0]), streamed=st.booleans())
    def one_comes_in_time_behind_a_late_one(self, after_s: float, streamed: bool) -> None:
        """What preemption is for; too rare by chance."""
        self.add(60_000, 0, 5.0, 0.0, 0, "a", streamed)
        self.admit()
        self.time_passes(after_s)
        self.add(1000, 0, 5.0, 0.0, 0, "b", True)
        self.admit()

    @rule()
    def admit(self) -> None:
        again_s = self.admission.admit(self.now_s)
        assert again_s is None or again_s > 0
        # What waits waits for something: the engine, or a time.
        assert not self.admission.queue or self.admission.line or self.admission.held

    @rule(seconds=st.sampled_from([0.001, 0.1, 2.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.admission.queue)
    @rule(which=WHICH)
    def take(self, which: int) -> None:
        name = list(self.admission.queue)[which % len(self.admission.queue)]
        assert self.admission.take(name) is not None
        assert self.admission.take(name) is None
        self.gone.add(name)

    @property
    def moving(self) -> list[Job]:
        """Who was told to stop says nothing more."""
        return [job for job in self.inside if job not in self.stopping]

    @precondition(lambda self: self.moving)
    @rule(which=WHICH, telling=st.booleans(), whole=st.booleans())
    def first_byte(self, which: int, telling: bool, whole: bool) -> None:
        """Also for one that had its first byte."""
        job = self.moving[which % len(self.moving)]
        # An engine may answer a request for a stream with a whole body.
        job.streamed = job.streamed and not whole
        self.admission.first_byte(job, self.now_s, telling)

    @precondition(lambda self: self.inside)
    @rule(which=WHICH, prompt_tokens=TOKENS, cached=st.none() | TOKENS)
    def finish(self, which: int, prompt_tokens: int, cached: int | None) -> None:
        job = self.inside[which % len(self.inside)]
        self.inside.remove(job)
        if job in self.stopping:
            # It ended before it was stopped.
            self.stopping.remove(job)
        self.admission.finish(job, self.now_s, prompt_tokens, cached)
        self.gone.add(job.request_id)

    @precondition(lambda self: self.stopping)
    @rule(which=WHICH)
    def requeue(self, which: int) -> None:
        job = self.stopping.pop(which % len(self.stopping))
        self.inside.remove(job)
        self.admission.requeue(job, self.now_s)

    @rule(waiting=st.integers(0, 2), kv_use=st.sampled_from([0.1, 0.99]))
    def engine_tells_its_load(self, waiting: int, kv_use: float) -> None:
        self.admission.load = EngineLoad(waiting=waiting, kv_use=kv_use)

    @invariant()
    def everyone_is_in_one_place(self) -> None:
        if not hasattr(self, "admission"):
            return
        admission = self.admission
        inside = {job.request_id for job in self.inside}
        line = [job.request_id for job in admission.line]
        assert admission.running == inside
        assert len(set(line)) == len(line)
        assert set(line) <= inside
        assert not inside & admission.queue.keys()
        assert inside | admission.queue.keys() | self.gone == {job.request_id for job in self.jobs}
        assert not self.gone & (inside | admission.queue.keys())
        assert len(inside) <= self.max_running
        assert len(self.stopping) <= 1
        assert {job.request_id for job in self.stopping} <= inside
        for job in self.jobs:
            assert self.starts.get(job.request_id, 0) <= job.preemptions + 1
            assert job.preemptions <= 3
            assert job.cached_tokens >= 0
        entries = admission.ordered(self.now_s)
        assert sorted(entry.request.request_id for entry in entries) == sorted(admission.queue)
        assert admission.in_hand(self.now_s).busy_s >= -1e-9

    def teardown(self) -> None:
        """The engine answers all that it is given: at the end nothing waits and nothing runs."""
        if not hasattr(self, "admission"):
            return
        self.admission.load = EngineLoad()
        for _ in range(5 * len(self.jobs) + 1):
            self.now_s += 1.0
            self.admission.admit(self.now_s)
            while self.stopping:
                self.requeue(0)
            for job in list(self.inside):
                self.admission.first_byte(job, self.now_s)
                self.finish(self.inside.index(job), job.prompt_tokens, 0)
        admission = self.admission
        assert (admission.queue, admission.line, admission.running) == ({}, [], set())
        assert admission.busy_s(self.now_s, admission.speed(self.now_s)) == 0.0
        assert all(self.told.count(name) <= self.starts.get(name, 0) for name in self.told)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(stateful_step_count=50)
