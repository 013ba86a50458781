"""Admission: the worker's queue and what it lets into the engine.

The engine is kept busy but shallow. A prefill is let in when what the engine still has to prefill falls
under a small budget, so that whatever waits can still be ordered and moved. Engines prefill first come,
first served, so the requests inside that have shown no first byte form a line; its head has run since the
previous first byte. An answer that is not streamed shows no first byte: it leaves the line when the
estimate says so, and is taken to have been prefilled by the next first byte that shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualmap.queue_order import Ordered, OrderRule, QueuedRequest, order
from dualmap.ttft import Prefill, SpeedTracker
from dualmap.types import PrefillSpeed
from dualmap_worker.engine import EngineLoad

_OVERRUN_GRACE_S = 0.05
"""A prefill this much late says nothing yet: a timer or a busy machine makes a short one look slow."""
_MAX_UNSEEN = 16
"""Unstreamed prefills in a row that one first byte may stand for; then the estimate is taken for seen."""
_TOGETHER = 0.5
"""A first byte that comes within this share of its own expected prefill was computed with the one before."""


@dataclass(slots=True, eq=False)
class Job:
    """A request in this worker, from its arrival to its end."""

    request_id: str
    arrival_s: float
    """When its router read it, on this process's clock."""
    prompt_tokens: int
    cached_tokens: int
    slo_s: float
    priority: int = 0
    streamed: bool = True
    feasible: bool = True
    """As booked by the router."""
    start: Callable[[], None] = lambda: None
    """Sends it to the engine."""
    prefilled: Callable[[], None] = lambda: None
    """Told when the estimate says that an unstreamed answer's prefill is over."""
    started_s: float | None = None
    first_byte_s: float | None = None
    prefill_s: float | None = None
    group: "_Group | None" = None
    ended: bool = False
    computed: Prefill | None = None
    """What its prefill was, once it has ended; None where that stays unknown."""

    @property
    def uncached_tokens(self) -> int:
        """Tokens that its prefill computes, as far as is known."""
        return max(self.prompt_tokens - self.cached_tokens, 1)

    @property
    def expected(self) -> Prefill:
        """Its prefill as it was booked."""
        return self.uncached_tokens, self.cached_tokens

    def own_s(self, speed: PrefillSpeed) -> float:
        """Expected prefill seconds."""
        return speed.prefill_s(self.uncached_tokens, self.cached_tokens)


@dataclass(slots=True)
class _Group:
    """Prefills whose first bytes came together: only their sum was observed."""

    seconds: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    closed: bool = False

    def add(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prefills that took so long together."""
        self.seconds += seconds
        for job in jobs:
            job.group = self
            self.jobs.append(job)


class Admission:
    """The queue, the line of prefills inside the engine, and the rule between them. Time is passed in."""

    def __init__(self, rule: OrderRule, ahead_tokens: int, max_running: int, hold_kv_use: float) -> None:
        self._rule = rule
        self._ahead_tokens = ahead_tokens
        self._max_running = max_running
        self._hold_kv_use = hold_kv_use
        self.queue: dict[str, Job] = {}
        self.line: list[Job] = []
        self.running: set[str] = set()
        self.tracker = SpeedTracker()
        self.load = EngineLoad()
        self._last_first_byte_s = 0.0
        self._group = _Group()
        self._unseen: list[Job] = []
        self._unseen_since_s = 0.0
        self._tells_cached = False

    # What is known

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
        late_s = now_s - self.head_since_s() - _OVERRUN_GRACE_S
        return self.tracker.speed(overrun=max(late_s, 0.0) / fitted_s)

    def busy_s(self, now_s: float) -> float:
        """Prefill seconds left in the line."""
        if not self.line:
            return 0.0
        speed = self.speed(now_s)
        costs = [job.own_s(speed) for job in self.line]
        return sum(costs) - min(now_s - self.head_since_s(), costs[0])

    def ordered(self, now_s: float) -> list[Ordered]:
        """The queue in serving order."""
        speed = self.speed(now_s)
        queued = (
            QueuedRequest(
                request_id=job.request_id,
                arrival_s=job.arrival_s,
                own_s=job.own_s(speed),
                slo_s=job.slo_s,
                cached_tokens=job.cached_tokens,
                priority=job.priority,
            )
            for job in self.queue.values()
        )
        return list(order(queued, now_s, self.busy_s(now_s), self._rule))

    # What happens

    def add(self, job: Job) -> None:
        """A request arrives."""
        self.queue[job.request_id] = job

    def take(self, request_id: str) -> Job | None:
        """Take a request off the queue, if it still waits."""
        return self.queue.pop(request_id, None)

    def admit(self, now_s: float) -> float | None:
        """Start what may start; returns in how many seconds to look again, None if an event will tell."""
        self._pass_unstreamed(now_s)
        while self.queue and not self.held:
            ahead_s = self.tracker.speed().prefill_s(self._ahead_tokens, 0)
            busy_s = self.busy_s(now_s)
            if self.line and busy_s > ahead_s:
                due_s = self._unstreamed_due_s(now_s)
                return busy_s - ahead_s if due_s is None else min(busy_s - ahead_s, due_s)
            job = self.queue.pop(self.ordered(now_s)[0].request.request_id)
            job.started_s = now_s
            self.line.append(job)
            self.running.add(job.request_id)
            job.start()
        return self._unstreamed_due_s(now_s)

    def first_byte(self, job: Job, now_s: float, telling: bool = True) -> None:
        """A prefill is over: the next in line has the engine.

        An error came without a prefill and tells nothing. An answer that is not streamed comes with its
        decode: when its prefill ended is not seen (and those slower than expected have left the line before).
        """
        if job not in self.line:
            return
        if not telling:
            self._leave_undone(job, now_s)
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
        if self._unseen or job.prefill_s > _TOGETHER * job.own_s(self.tracker.speed()):
            self._close_group()
        seconds = now_s - self._unseen_since_s if self._unseen else job.prefill_s
        self._group.add([*self._unseen, job], seconds)
        self._unseen.clear()
        self._leave_line(job, now_s)
        if not self.line:
            self._close_group()

    def finish(
        self, job: Job, now_s: float, prompt_tokens: int = 0, cached_tokens: int | None = None
    ) -> None:
        """A request has ended, however; tokens as the engine reported them."""
        if job in self.line:
            self._leave_undone(job, now_s)
        self.running.discard(job.request_id)
        job.ended, job.computed = True, self._computed(job, prompt_tokens, cached_tokens)
        if job.group is not None:
            self._confirm(job.group)

    def _computed(self, job: Job, prompt_tokens: int, cached_tokens: int | None) -> Prefill | None:
        """What a prefill was; as expected where the engine never tells, None where it might have."""
        if cached_tokens is not None:
            self._tells_cached = True
        elif not self._tells_cached:
            cached_tokens = job.cached_tokens
            prompt_tokens = prompt_tokens or job.prompt_tokens
        else:
            # vLLM leaves the detail out where nothing was cached.
            cached_tokens = 0
        if prompt_tokens <= 0:
            return None
        cached_tokens = max(min(cached_tokens, prompt_tokens - 1), 0)
        return prompt_tokens - cached_tokens, cached_tokens

    def _close_group(self) -> None:
        """Nothing more belongs to the latest first bytes: what they took together is a sample."""
        group, self._group = self._group, _Group()
        if group.jobs:
            group.closed = True
            self.tracker = self.tracker.prefilled([job.expected for job in group.jobs], group.seconds)
            self._confirm(group)

    def _confirm(self, group: _Group) -> None:
        """Fit a group once it is known what all of it was."""
        if not group.closed or not all(job.ended for job in group.jobs):
            return
        computed = [job.computed for job in group.jobs if job.computed is not None]
        if len(computed) == len(group.jobs):
            self.tracker = self.tracker.confirmed(computed, group.seconds)

    def _leave_unseen(self, job: Job, now_s: float) -> None:
        """An unstreamed prefill is over: the next first byte shows what both took, unless none comes."""
        if len(self._unseen) >= _MAX_UNSEEN:
            self._unseen.clear()
        if not self._unseen:
            self._unseen_since_s = self.head_since_s()
        self._unseen.append(job)
        self._leave_line(job, now_s)

    def _leave_undone(self, job: Job, now_s: float) -> None:
        """It takes an unknown part of a prefill with it, so what was not seen before it stays untold."""
        self._unseen.clear()
        self._leave_line(job, now_s)

    def _leave_line(self, job: Job, now_s: float) -> None:
        # Only a prefill that ended frees the engine for the next; one that left from behind changes nothing.
        if self.line[0] is job or job.first_byte_s is not None:
            self._last_first_byte_s = now_s
        self.line.remove(job)
        if not self.line:
            # The engine may idle from here on: what it did before cannot be told from that any more.
            self._unseen.clear()

    def _unstreamed_due_s(self, now_s: float) -> float | None:
        if not self.line or self.line[0].streamed:
            return None
        head = self.line[0]
        return max(self.head_since_s() + head.own_s(self.tracker.speed()) - now_s, 0.001)

    def _pass_unstreamed(self, now_s: float) -> None:
        """Unstreamed heads whose estimated prefill is over leave the line."""
        while self.line and not self.line[0].streamed:
            head = self.line[0]
            if now_s < self.head_since_s() + head.own_s(self.tracker.speed()):
                return
            self._leave_unseen(head, now_s)
            head.prefilled()
