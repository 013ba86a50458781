"""Admission: the worker's queue and what it lets into the engine.

The engine is kept busy but shallow. A prefill is let in when what the engine still has to prefill falls
under a small budget, so that whatever waits can still be ordered and moved. Engines prefill first come,
first served, so the requests inside that have shown no first byte form a line; its head has run since the
previous first byte. An answer that is not streamed shows no first byte: it leaves the line when the
estimate says so, and is taken to have been prefilled by the next first byte that shows. A head that is late
gives way to a feasible request (`dualmap.preempt`): it is stopped, and waits again with what it computed cached.
A long one that is late starts alone: beside others it would fill their step, and their first bytes wait for that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualmap.arrivals import Arrivals
from dualmap.job import Job
from dualmap.preempt import (
    Line,
    PreemptRule,
    RunningRequest,
    computed_tokens,
    order_behind,
    plan_preemption,
    split,
)
from dualmap.queue_order import (
    NO_DEFICITS,
    Deficits,
    Ordered,
    OrderRule,
    QueuedRequest,
    charge,
    discipline,
    give_back,
)
from dualmap.samples import PrefillSamples
from dualmap.ttft import SpeedTracker
from dualmap.types import EngineLoad, PrefillSpeed

_OVERRUN_GRACE_S = 0.05
"""A prefill this much late says nothing yet: a timer or a busy machine makes a short one look slow."""
_BLOCK_TOKENS = 128
"""What a preempted prefill is taken to have computed, in multiples of this: engines' KV blocks are no larger."""


@dataclass(frozen=True, slots=True)
class InHand:
    """What the engine has in hand at one time, and how fast it is taken to be."""

    speed: PrefillSpeed
    busy_s: float
    """Prefill seconds left in the line."""
    line: Line
    """The same by what a feasible request waits for, and what of it gives way to one."""


class Admission:
    """The queue, the line of prefills inside the engine, and the rule between them. Time is passed in."""

    def __init__(
        self,
        rule: OrderRule,
        ahead_tokens: int,
        max_running: int,
        hold_kv_use: float,
        preempt: PreemptRule = PreemptRule(),
        step_tokens: int = 8192,
    ) -> None:
        self._rule = rule
        self._preempt_rule = preempt
        self._step_tokens = step_tokens
        self._ahead_tokens = ahead_tokens
        self._max_running = max_running
        self._hold_kv_use = hold_kv_use
        self.queue: dict[str, Job] = {}
        self._arrivals = Arrivals()
        self.line: list[Job] = []
        self.running: set[str] = set()
        self.load = EngineLoad()
        self.preemptions = 0
        self._samples = PrefillSamples()
        self._last_first_byte_s = 0.0
        self._undone_until_s = 0.0
        self.deficits: Deficits = NO_DEFICITS
        """What tenants may still be served, where the order counts that."""

    # What is known

    @property
    def tracker(self) -> SpeedTracker:
        """The engine's prefill speed, as far as it was seen."""
        return self._samples.tracker

    @property
    def held(self) -> bool:
        """Whether the engine should get no more prefills now: too many sequences, or no room in KV cache."""
        if len(self.running) >= self._max_running:
            return True
        return self.load.waiting > 0 and self.load.kv_use >= self._hold_kv_use

    def head_since_s(self) -> float:
        """When the head of the line began to be prefilled."""
        started_s = self.line[0].started_s
        assert started_s is not None
        return max(started_s, self._last_first_byte_s)

    def speed(self, now_s: float) -> PrefillSpeed:
        """What to expect of the engine now; a head that overruns its estimate counts at once."""
        if not self.line:
            return self.tracker.speed(idle_s=max(now_s - self._last_first_byte_s, 0.0))
        fitted_s = max(self.line[0].own_s(self.tracker.fit.speed), 1e-3)
        # The engine may still be busy with the step of what was stopped before.
        late_s = now_s - max(self.head_since_s(), self._undone_until_s) - _OVERRUN_GRACE_S
        return self.tracker.speed(overrun=max(late_s, 0.0) / fitted_s)

    def in_hand(self, now_s: float) -> InHand:
        """What the engine still has to prefill."""
        speed = self.speed(now_s)
        return InHand(speed, self.busy_s(now_s, speed), self._in_line(now_s, speed))

    def busy_s(self, now_s: float, speed: PrefillSpeed) -> float:
        """Prefill seconds left in the line at this speed."""
        if not self.line:
            return 0.0
        costs = [job.own_s(speed) for job in self.line]
        return sum(costs) - min(now_s - self.head_since_s(), costs[0])

    def _in_line(self, now_s: float, speed: PrefillSpeed) -> Line:
        return split(self._running_requests(now_s, speed), now_s, self._rule, self._preempt_rule)

    def ordered(self, now_s: float) -> list[Ordered]:
        """The queue in serving order."""
        return self._ordered(now_s, self.speed(now_s)) if self.queue else []

    def _ordered(self, now_s: float, speed: PrefillSpeed) -> list[Ordered]:
        line = self._in_line(now_s, speed)
        entries = order_behind(line, self._queued_requests(speed), now_s, self._rule, self.deficits)
        return [entry for entry in entries if entry.request.request_id in self.queue]

    def _queued_requests(self, speed: PrefillSpeed) -> Sequence[QueuedRequest]:
        return [job.queued(job.own_s(speed)) for job in self.queue.values()]

    def _running_requests(self, now_s: float, speed: PrefillSpeed) -> Iterable[RunningRequest]:
        if not self.line:
            return
        ran_s = max(now_s - self.head_since_s(), 0.0)
        for job in self.line:
            own_s = job.own_s(speed)
            left_s = max(own_s - ran_s, 0.0)
            stop_s = min(self._stop_s(job, ran_s), left_s)
            yield RunningRequest(job.queued(left_s), ran_s, job.preemptions, stop_s)
            ran_s = 0.0

    def _stop_s(self, job: Job, ran_s: float) -> float:
        """What is left on average of the step that the engine is in, if that is this request's."""
        if ran_s <= 0.0:
            return 0.0
        speed = self.tracker.speed()
        done = computed_tokens(job.uncached_tokens, ran_s, job.own_s(speed))
        return 0.5 * (speed.prefill_s(self._step_tokens, job.cached_tokens + done) - speed.a_s)

    # What happens

    def add(self, job: Job) -> None:
        """A request waits: it has just come, or was stopped."""
        self.queue[job.request_id] = job
        self._arrivals.add(job)

    def take(self, request_id: str) -> Job | None:
        """Take a request off the queue, if it still waits."""
        job = self.queue.pop(request_id, None)
        if job is not None:
            self._arrivals.remove(job)
        return job

    def admit(self, now_s: float) -> float | None:
        """Start what may start, stop what gives way to it.

        Returns in how many seconds to look again, None if an event will tell.
        """
        self._pass_unstreamed(now_s)
        while self.queue and not self.held:
            speed = self.speed(now_s)
            ahead_s = self.tracker.speed().prefill_s(self._ahead_tokens, 0)
            busy_s = self.busy_s(now_s, speed)
            if self.line and busy_s > ahead_s:
                waits = (busy_s - ahead_s, self._unstreamed_due_s(now_s), self._preempt(now_s, speed))
                return min(wait_s for wait_s in waits if wait_s is not None)
            job = self._next(now_s, speed, ahead_s)
            if job is None:
                break
            self.take(job.request_id)
            job.started_s = now_s
            self.line.append(job)
            self.running.add(job.request_id)
            job.start()
        return self._unstreamed_due_s(now_s)

    def _next(self, now_s: float, speed: PrefillSpeed, ahead_s: float) -> Job | None:
        """Whose turn it is; None while that one waits to start alone."""
        if len(self.queue) == 1:
            only = next(iter(self.queue.values()))
            if not self.line or only.own_s(speed) <= ahead_s:
                self._charge([only.queued(only.own_s(speed))], now_s)
                return only
        waiting, feasible = self._first(now_s, speed)
        first = waiting[0]
        if self.line and self._starts_alone(first, feasible, ahead_s):
            return None
        self._charge(waiting, now_s)
        return self.queue[first.request_id]

    def _first(self, now_s: float, speed: PrefillSpeed) -> tuple[list[QueuedRequest], bool]:
        """Who is next, before all others whom a charge has to know of, and whether that one can be in time."""
        line = self._in_line(now_s, speed)
        pick = discipline(self._rule).first
        if pick is None or line.giving_way or not self._arrivals.alike:
            entries = self._ordered(now_s, speed)
            return [entry.request for entry in entries], entries[0].feasible
        ready_s = now_s + line.blocking_s
        oldest, in_time = self._arrivals.oldest(), self._arrivals.oldest_in_time(now_s, ready_s, speed)
        first = pick(
            oldest.queued(oldest.own_s(speed)),
            None if in_time is None else in_time.queued(in_time.own_s(speed)),
            now_s, ready_s, self._rule, self.deficits,
        )  # fmt: skip
        feasible = first.is_in_time(ready_s)
        # Late work is owed to nobody if nobody else could be in time.
        other = None if feasible else self._arrivals.oldest_in_time(now_s, now_s, speed)
        return [first, *(() if other is None else (other.queued(other.own_s(speed)),))], feasible

    def _charge(self, waiting: list[QueuedRequest], now_s: float) -> None:
        """The first of those that wait starts."""
        self.deficits = charge(self.deficits, waiting[0], waiting, now_s, self._rule)

    def _starts_alone(self, first: QueuedRequest, feasible: bool, ahead_s: float) -> bool:
        late_last = discipline(self._rule).puts_late_last
        return late_last and not feasible and first.own_s > ahead_s

    def _preempt(self, now_s: float, speed: PrefillSpeed) -> float | None:
        """Stop the head of the line if it is to give way; or tell in how many seconds it will be."""
        if any(job.stopping for job in self.line):
            return None
        line = self._in_line(now_s, speed)
        if not line.giving_way:
            return None
        queue = self._queued_requests(speed)
        planned = plan_preemption(line, queue, now_s, self._rule, self._preempt_rule, self.deficits)
        if planned is None or planned.after_s > 0.0:
            return None if planned is None else planned.after_s
        head = self.line[0]
        head.stopping = True
        head.stop()
        return None

    def requeue(self, job: Job, now_s: float) -> None:
        """A request that was stopped is out of the engine: it waits again, and will find in the cache what it did."""
        if job in self.line:
            self._give_back(job, now_s)
            if job is self.line[0]:
                own_s, ran_s = job.own_s(self.speed(now_s)), now_s - self.head_since_s()
                done = computed_tokens(job.uncached_tokens, ran_s, own_s)
                job.cached_tokens += done // _BLOCK_TOKENS * _BLOCK_TOKENS
            self._leave_undone(job, now_s)
        self.running.discard(job.request_id)
        job.started_s, job.stopping = None, False
        job.preemptions += 1
        self.preemptions += 1
        self.add(job)

    def _give_back(self, job: Job, now_s: float) -> None:
        """Its tenant has back what it was charged for and not served, without the step that the engine ends."""
        for running in self._running_requests(now_s, self.speed(now_s)):
            if running.queued.request_id == job.request_id:
                left_s = running.queued.own_s - running.stop_s
                self.deficits = give_back(self.deficits, job.queued(left_s), self._rule)

    def first_byte(self, job: Job, now_s: float, telling: bool = True) -> None:
        """A prefill is over: the next in line has the engine.

        An error came without a prefill and tells nothing. An answer that is not streamed comes with its
        decode: when its prefill ended is not seen (and those slower than expected have left the line before).
        """
        if job not in self.line:
            return
        if not telling:
            self._samples.forget_unseen()
            self._leave_line(job, now_s)
            return
        if not job.streamed:
            self._leave_unseen(job, now_s)
            return
        job.first_byte_s = now_s
        since_s = job.started_s if job.started_s is not None else now_s
        job.prefill_s = max(now_s - max(since_s, self._last_first_byte_s), 0.0)
        for ahead in self.line[: self.line.index(job)]:
            if not ahead.streamed:
                # First come, first served: it was prefilled sooner than the estimate says.
                self._leave_unseen(ahead, now_s)
                ahead.prefilled()
        self._samples.first_byte(
            job, now_s, spoilt=max(since_s, self._last_first_byte_s) < self._undone_until_s
        )
        self._undone_until_s = 0.0
        self._leave_line(job, now_s)
        if not self.line:
            self._samples.close_group()

    def finish(
        self, job: Job, now_s: float, prompt_tokens: int = 0, cached_tokens: int | None = None
    ) -> None:
        """A request has ended, however; tokens as the engine reported them."""
        if job in self.line:
            self._leave_undone(job, now_s)
        self.running.discard(job.request_id)
        self._samples.ended(job, prompt_tokens, cached_tokens)

    def _leave_unseen(self, job: Job, now_s: float) -> None:
        """An unstreamed prefill is over."""
        self._samples.unseen(job, self.head_since_s())
        self._leave_line(job, now_s)

    def _leave_undone(self, job: Job, now_s: float) -> None:
        """It takes an unknown part of a prefill with it, so what was not seen before it stays untold.

        The engine ends the step that it is in, which is no more than what was left.
        """
        if job is self.line[0]:
            left_s = job.own_s(self.speed(now_s)) - (now_s - self.head_since_s())
            self._undone_until_s = max(self._undone_until_s, now_s + left_s)
        self._samples.forget_unseen()
        self._leave_line(job, now_s)

    def _leave_line(self, job: Job, now_s: float) -> None:
        # Only a prefill that ended frees the engine for the next; one that left from behind changes nothing.
        if self.line[0] is job or job.first_byte_s is not None:
            self._last_first_byte_s = now_s
        self.line.remove(job)
        if not self.line:
            # The engine may idle from here on: what it did before cannot be told from that any more.
            self._samples.forget_unseen()

    def _unstreamed_due_s(self, now_s: float) -> float | None:
        if not self.line or self.line[0].streamed:
            return None
        head = self.line[0]
        return max(self.head_since_s() + head.own_s(self.tracker.speed()) - now_s, 0.001)

    def _pass_unstreamed(self, now_s: float) -> None:
        """Unstreamed heads whose estimated prefill is over leave the line."""
        while self.line and not self.line[0].streamed and not self.line[0].stopping:
            head = self.line[0]
            if now_s < self.head_since_s() + head.own_s(self.tracker.speed()):
                return
            self._leave_unseen(head, now_s)
            head.prefilled()
