"""The chunked engine: a step loop as vLLM's, at the grain of 512-token chunks, in simulated time.

Given the same arrivals it does what `engine.model.EngineModel` does with blocks of 512 tokens, at the same times, but
one timer stands for all the steps that a plan holds for (see `chunked_batch`). Who arrives, or is aborted,
ends such a run of steps with the step under way, since a step loop would see it at that step's end.

Arrivals at the same instant share a step. A listener is called when a step is over and before the next one
begins, so what it submits is in time for that. Unlike the model, it leaves a profile's jitter out.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.fleet.chunked_batch import ChunkedBatch
from dualmap_sim.fleet.engine import EngineListener, Sequence
from dualmap_sim.fleet.loop import Loop, Timer


class ChunkedEngine:
    """Chunked prefills, continuous batching, a prefix cache and preemption."""

    def __init__(
        self,
        loop: Loop,
        listener: EngineListener,
        profile: EngineProfile,
        stored: Callable[[int], None] = lambda chunk: None,
        evicted: Callable[[int], None] = lambda chunk: None,
    ) -> None:
        """`profile.num_kv_blocks` are blocks of 512 tokens; `stored` and `evicted` are told of each chunk."""
        self._loop = loop
        self._listener = listener
        self._batch = ChunkedBatch(profile, stored, evicted)
        self._speed_factor = 1.0
        # What the timer waits for: the end of so many steps, none while it waits to begin one.
        self._timer: Timer | None = None
        self._num_steps = 0
        self._prefills = False
        self._began_s = 0.0
        self._step_s = 0.0
        self.busy_s = 0.0
        """Seconds of the steps that prefilled, whatever else they did; steps of decodes alone do not count."""

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._batch.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._batch.waiting)

    @property
    def kv_use(self) -> float:
        """Share of the blocks that sequences hold."""
        return self._batch.cache.usage

    @property
    def num_preemptions(self) -> int:
        """Sequences that lost their blocks to a decode, so far."""
        return self._batch.num_preemptions

    @property
    def speed_factor(self) -> float:
        """Above 1: slower than its profile; a change holds from the next step on."""
        return self._speed_factor

    @speed_factor.setter
    def speed_factor(self, factor: float) -> None:
        self._speed_factor = factor
        self._cut()

    def cached_chunks(self, chunks: SequenceOf[int]) -> int:
        """Leading chunks of a prompt that it holds."""
        return self._batch.cache.match(chunks)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; EngineConfigError for one that could never run."""
        self._batch.add(sequence)
        if self._timer is None:
            self._timer = self._loop.after(0.0, self._begin)
        elif self.num_waiting == 1:
            # Behind one that finds no room it changes nothing.
            self._cut()

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out: its blocks are free at once, the step under way takes as long as it would have."""
        self._batch.drop(sequence)
        self._cut()

    def kill(self) -> list[Sequence]:
        """Lose everything, and return the sequences that were inside."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._num_steps = 0
        return self._batch.lose()

    def _begin(self) -> None:
        """Begin the steps that come next, if there is anything to do."""
        self._timer = None
        plan = self._batch.plan()
        if plan is None:
            return
        self._began_s = self._loop.now_s
        self._step_s = plan.step_s * self._speed_factor
        self._num_steps = plan.num_steps
        self._prefills = plan.prefills
        self._timer = self._loop.after(self._num_steps * self._step_s, self._end)

    def _cut(self) -> None:
        """End a run of steps with the one under way."""
        if self._num_steps < 2 or self._step_s <= 0.0:
            return
        assert self._timer is not None
        # At the very end of a step, up to rounding, the next one is not under way yet.
        begun = math.ceil((self._loop.now_s - self._began_s) / self._step_s - 1e-9)
        num_steps = max(begun, 1)
        if num_steps < self._num_steps:
            self._num_steps = num_steps
            self._timer.cancel()
            self._timer = self._loop.at(self._began_s + num_steps * self._step_s, self._end)

    def _end(self) -> None:
        """Apply what the steps did, tell, and go on."""
        self._timer = None
        num_steps, self._num_steps = self._num_steps, 0
        if self._prefills:
            self.busy_s += self._step_s
        begun, ended = self._batch.apply(num_steps)
        for sequence in begun:
            sequence.prefilled = True
            self._listener.first_token(sequence)
        for sequence in ended:
            self._listener.finished(sequence)
        # A listener's submit has a timer of its own by now.
        if self._timer is None:
            self._begin()
