"""What the chunked engine computes in its steps: `engine.model.EngineModel`'s rules, many decode steps at once.

Theory of operation. Decoding sequences advance in lockstep, one token a step, so one count of steps stands for the
progress of all of them: a sequence ends, and needs its next block, at counts that are known when it begins
to decode, and two heaps keep them. While nothing is prefilled no step differs from the one before, until the first of
these counts. So `plan` costs nothing for the sequences that merely decode, and says how many steps its plan
holds for. A waiting request that found no room finds none in those steps either.

Pure: no clock. The shell calls `plan`, lets steps pass, and calls `apply`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from dualmap_sim.engine.block_cache import BlockCache, BlocksRemoved, BlocksStored
from dualmap_sim.engine.errors import EngineConfigError
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.fleet.chunked_run import GONE, DueHeap, Run
from dualmap_sim.fleet.engine import CHUNK_TOKENS, Sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """Up to `num_steps` equal steps of `step_s` seconds each, at the profile's speed."""

    step_s: float
    num_steps: int
    prefills: bool


class ChunkedBatch:
    """The sequences and blocks of one engine; its profile's `num_kv_blocks` count 512-token blocks."""

    def __init__(
        self, profile: EngineProfile, stored: Callable[[int], None], evicted: Callable[[int], None]
    ) -> None:
        self._profile = replace(profile, block_size=CHUNK_TOKENS)
        self._stored = stored
        self._evicted = evicted
        self.cache = BlockCache(profile.num_kv_blocks, CHUNK_TOKENS)
        self.num_preemptions = 0
        self.waiting: deque[Run] = deque()
        # Dicts for their order, which is that of admission.
        self.running: dict[Run, None] = {}
        self._prefilling: dict[Run, None] = {}
        self._runs: dict[Sequence, Run] = {}
        self._work: list[tuple[Run, int]] = []
        self._num_decoding = 0
        self._ends = DueHeap()
        self._growths = DueHeap()
        self._num_admitted = 0
        self._step = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; EngineConfigError for one that could never run."""
        run = Run(sequence)
        if run.prompt_tokens < 1 or run.max_new_tokens < 1:
            raise EngineConfigError("a request needs at least one prompt token and one new token")
        if run.prompt_tokens + run.max_new_tokens > self._profile.context_limit_tokens:
            raise EngineConfigError("the prompt and its new tokens exceed the context")
        self._runs[sequence] = run
        self.waiting.append(run)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks; what it was to compute in a planned step stays findable."""
        run = self._runs.pop(sequence)
        if run.order == GONE:
            self.waiting.remove(run)
        else:
            self._leave(run)

    def lose(self) -> list[Sequence]:
        """Forget every sequence and every chunk; return the sequences."""
        lost = [run.sequence for run in (*self.running, *self.waiting)]
        for sequence in lost:
            self.drop(sequence)
        for chunk in self.cache.hashes():
            self._evicted(chunk)
        self.cache = BlockCache(self._profile.num_kv_blocks, CHUNK_TOKENS)
        return lost

    def plan(self) -> Plan | None:
        """Decide what the next steps compute; None when there is nothing to do."""
        if not self._runs:
            return None
        self._grow()
        num_decodes = self._num_decoding
        prefill_s = self._prefill(self._profile.max_num_batched_tokens - num_decodes)
        self._tell()
        step_s = self._profile.step_s(prefill_s, num_decodes)
        if self._work:
            return Plan(step_s, 1, True)
        due = min(self._ends.next_step(), self._growths.next_step())
        return Plan(step_s, int(due) - self._step, False)

    def apply(self, num_steps: int) -> tuple[list[Sequence], list[Sequence]]:
        """Let planned steps be over: who has its first token by that, and who its last."""
        self._step += num_steps
        work, self._work = self._work, []
        begun: list[Sequence] = []
        ended: list[Run] = []
        for run, chunk in work:
            if run.order == GONE:
                continue
            run.num_computed += chunk
            left = run.num_tokens - run.num_computed
            if left == 0:
                run.generated += 1
                if run.generated == 1:
                    begun.append(run.sequence)
                if run.generated >= run.max_new_tokens:
                    ended.append(run)
                else:
                    self._decode(run)
            elif left == 1 and run.generated:
                # Recomputed up to its newest token: the rest is a decode like any other.
                self._decode(run)
        while (due := self._ends.pop(self._step)) is not None:
            ended.append(due)
        for run in ended:
            del self._runs[run.sequence]
            self._leave(run)
        return begun, [run.sequence for run in ended]

    def _grow(self) -> None:
        """Give each decode whose newest token lacks room a block, preempting from the tail where none is free."""
        while (run := self._growths.pop(self._step)) is not None:
            while (blocks := self.cache.allocate((), 1)) is None:
                victim = next(reversed(self.running))
                self._preempt(victim)
                if victim is run:
                    break
            else:
                run.blocks += blocks
                self._plan_growth(run)

    def _preempt(self, run: Run) -> None:
        if run.decodes:
            run.generated = self._step - run.zero_step
        self._leave(run)
        run.started = False
        self.waiting.appendleft(run)
        self.num_preemptions += 1

    def _prefill(self, budget: int) -> float:
        """Schedule the prefills of a step as `_work`, and return what they cost in seconds."""
        profile = self._profile
        cost_s = 0.0
        num_partial = 0
        for run in self._prefilling:
            if budget <= 0:
                break
            chunk, chunk_s, is_partial = self._schedule(run, budget)
            budget -= chunk
            cost_s += chunk_s
            num_partial += is_partial
        while (
            self.waiting
            and budget > 0
            and len(self.running) < profile.max_num_seqs
            and num_partial < profile.max_num_partial_prefills
            and self._admit(self.waiting[0])
        ):
            chunk, chunk_s, is_partial = self._schedule(self.waiting.popleft(), budget)
            budget -= chunk
            cost_s += chunk_s
            num_partial += is_partial
        return cost_s

    def _schedule(self, run: Run, budget: int) -> tuple[int, float, bool]:
        """Schedule a chunk: its tokens, its seconds, and whether more are left."""
        left = run.num_tokens - run.num_computed
        chunk = min(left, budget)
        threshold = self._profile.long_prefill_token_threshold
        if 0 < threshold < chunk:
            chunk = threshold
        cost_s = self._profile.prefill_chunk_s(chunk, run.num_computed)
        if not run.started:
            run.started = True
            cost_s += self._profile.prefill_request_s
        # Findable from now on: who is admitted later in the same step reads what this one writes.
        first, last = run.num_committed, min((run.num_computed + chunk) // CHUNK_TOKENS, len(run.chunks))
        if last > first:
            self.cache.commit(run.blocks[first:last], run.chunks[first:last], None)
            run.num_committed = last
        self._work.append((run, chunk))
        return chunk, cost_s, chunk < left

    def _admit(self, run: Run) -> bool:
        # The last token is always computed: its logits are the first new token.
        matchable = run.chunks[: (run.num_tokens - 1) // CHUNK_TOKENS]
        num_cached = self.cache.match(matchable)
        num_new = -(-run.num_tokens // CHUNK_TOKENS) - num_cached
        blocks = self.cache.allocate(matchable[:num_cached], num_new)
        if blocks is None:
            return False
        run.blocks = blocks
        run.num_computed = num_cached * CHUNK_TOKENS
        run.num_committed = num_cached
        if not run.generated:
            run.sequence.cached_tokens = run.num_computed
        run.order = self._num_admitted
        self._num_admitted += 1
        self.running[run] = None
        self._prefilling[run] = None
        return True

    def _decode(self, run: Run) -> None:
        """From the next step on it decodes one token a step."""
        del self._prefilling[run]
        run.decodes = True
        run.zero_step = self._step - run.generated
        self._num_decoding += 1
        self._ends.push(run.zero_step + run.max_new_tokens, run)
        self._plan_growth(run)

    def _plan_growth(self, run: Run) -> None:
        """Note when its blocks no longer hold its tokens, if that is before its end."""
        generated = len(run.blocks) * CHUNK_TOKENS - run.prompt_tokens + 1
        if generated < run.max_new_tokens:
            self._growths.push(run.zero_step + generated, run)

    def _leave(self, run: Run) -> None:
        del self.running[run]
        self._prefilling.pop(run, None)
        self._num_decoding -= run.decodes
        run.decodes = False
        run.order = GONE
        self.cache.release(run.blocks)

    def _tell(self) -> None:
        """Pass on which chunks came and went."""
        for event in self.cache.drain_events():
            if isinstance(event, BlocksStored):
                for chunk in event.block_hashes:
                    self._stored(chunk)
            elif isinstance(event, BlocksRemoved):
                for chunk in event.block_hashes:
                    self._evicted(chunk)
