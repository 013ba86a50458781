"""The engine as a pure step model: requests in, steps with a duration and tokens out.

Theory of operation, after vLLM's scheduler. A step has a budget of tokens. Every running sequence that is
done with its prompt decodes one token first; running prefills take their next chunk; then waiting requests
are admitted in arrival order while budget, sequences and KV blocks last. The cached leading blocks of a
prompt are pinned and skipped, except that at least its last token is computed. A prompt is admitted only when
blocks for all of it are free, so prefills never starve each other half-way. When a decode finds no free
block, the sequence admitted last is preempted: it loses its blocks, returns to the head of the queue and
recomputes its prompt and what it had generated, most of which it finds in the cache.

Rules: no clock (time comes in as `now_s`), no randomness but the generator given, no I/O. The shell calls
`start_step`, waits for its duration, and calls `end_step`; a simulator calls `step`.
"""

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dualmap_sim.engine.block_cache import BlockCache, CacheEvent, extend_chain
from dualmap_sim.engine.errors import EngineConfigError
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.engine.sequence import Sequence, SimRequest, StepOutcome, TokenEvent
from dualmap_sim.engine.text import BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Step:
    """A step under way: which sequences compute how many tokens."""

    start_s: float
    duration_s: float
    work: tuple[tuple[Sequence, int], ...]
    num_decodes: int
    cache_events: tuple[CacheEvent, ...]

    @property
    def end_s(self) -> float:
        """When the step is over."""
        return self.start_s + self.duration_s


class EngineModel:
    """One engine; counters only ever grow."""

    def __init__(
        self, profile: EngineProfile, rng: random.Random | None = None, *, record_cache_events: bool = True
    ) -> None:
        self.profile = profile
        self.cache = BlockCache(profile.num_kv_blocks, profile.block_size, record_events=record_cache_events)
        self.slow_down = 1.0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.prefill_tokens = 0
        self.generated_tokens = 0
        self.num_preemptions = 0
        self.busy_s = 0.0
        self._rng = rng or random.Random(profile.seed)
        self._sequences: dict[str, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that have not been admitted, or were preempted."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    def submit(self, request: SimRequest, now_s: float) -> int:
        """Queue a request and return its number of prompt tokens; EngineConfigError if it can never fit."""
        if request.request_id in self._sequences:
            raise EngineConfigError(f"request {request.request_id!r} is already in the engine")
        sequence = Sequence(request, self.profile.block_size, now_s)
        if sequence.num_prompt_tokens < 1 or request.max_new_tokens < 1:
            raise EngineConfigError("a request needs at least one prompt token and one new token")
        if sequence.num_prompt_tokens + request.max_new_tokens > self.profile.context_limit_tokens:
            raise EngineConfigError("the prompt and its new tokens exceed the context")
        self._sequences[request.request_id] = sequence
        self._waiting.append(sequence)
        return sequence.num_prompt_tokens

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks; False if it is not (any longer) here."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self._running:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        return True

    def step(self, now_s: float) -> StepOutcome | None:
        """Do a whole step; None when there is nothing to do."""
        step = self.start_step(now_s)
        return None if step is None else self.end_step(step)

    def start_step(self, now_s: float) -> Step | None:
        """Decide what the next step computes, and how long that takes."""
        if not self._sequences:
            return None
        work: list[tuple[Sequence, int]] = []
        decodes = self._schedule_decodes()
        budget = self.profile.max_num_batched_tokens - len(decodes)
        prefill_s = 0.0
        num_partial = 0
        for sequence in self._running:
            if sequence.is_prefilling and budget > 0:
                chunk, cost_s = self._prefill(sequence, budget)
                budget -= chunk
                prefill_s += cost_s
                work.append((sequence, chunk))
                num_partial += chunk < sequence.num_tokens - sequence.num_computed
        while self._waiting and self._has_room(budget, num_partial):
            sequence = self._waiting[0]
            if not self._admit(sequence):
                break
            self._waiting.popleft()
            chunk, cost_s = self._prefill(sequence, budget)
            budget -= chunk
            prefill_s += cost_s
            work.append((sequence, chunk))
            num_partial += chunk < sequence.num_tokens - sequence.num_computed
        for sequence in decodes:
            self._commit(sequence, sequence.num_computed + 1)
        # At least one sequence always computes: the oldest running one is never preempted, and with none
        # running every block is free for the first one waiting.
        duration_s = self.profile.step_s(prefill_s, len(decodes)) * self.slow_down * self._jitter()
        work += [(sequence, 1) for sequence in decodes]
        return Step(now_s, duration_s, tuple(work), len(decodes), tuple(self.cache.drain_events()))

    def end_step(self, step: Step) -> StepOutcome:
        """Apply a step's work; sequences aborted meanwhile are passed over."""
        tokens: list[TokenEvent] = []
        prefill_tokens = 0
        finished: list[Sequence] = []
        for sequence, computed in step.work:
            request = sequence.request
            if self._sequences.get(request.request_id) is not sequence:
                continue
            decoding = not sequence.is_prefilling
            if not decoding:
                prefill_tokens += computed
            sequence.num_computed += computed
            if sequence.num_computed < sequence.num_tokens:
                continue
            sequence.generated += 1
            done = sequence.generated >= request.max_new_tokens
            reason = request.finish_reason if done else None
            index = sequence.generated - 1
            tokens.append(TokenEvent(request.request_id, index, sequence.cached_tokens, reason))
            if done:
                finished.append(sequence)
        for sequence in finished:
            del self._sequences[sequence.request.request_id]
            self._leave(sequence)
        self.prefill_tokens += prefill_tokens
        self.generated_tokens += len(tokens)
        self.busy_s += step.duration_s
        return StepOutcome(
            step.start_s, step.duration_s, prefill_tokens, step.num_decodes, tuple(tokens), step.cache_events
        )

    def clear_cache(self) -> tuple[CacheEvent, ...]:
        """Forget all cached prefixes and return the events that say so."""
        self.cache.clear()
        return tuple(self.cache.drain_events())

    def request_ids(self) -> Iterable[str]:
        """The requests that are waiting or running."""
        return tuple(self._sequences)

    def _jitter(self) -> float:
        jitter = self.profile.jitter
        return self._rng.uniform(1.0 - jitter, 1.0 + jitter) if jitter else 1.0

    def _has_room(self, budget: int, num_partial: int) -> bool:
        profile = self.profile
        return (
            budget > 0
            and len(self._running) < profile.max_num_seqs
            and num_partial < profile.max_num_partial_prefills
        )

    def _prefill(self, sequence: Sequence, budget: int) -> tuple[int, float]:
        """Schedule a chunk: how many tokens, and what they cost."""
        chunk = min(sequence.num_tokens - sequence.num_computed, budget)
        threshold = self.profile.long_prefill_token_threshold
        if 0 < threshold < chunk:
            chunk = threshold
        cost_s = self.profile.prefill_chunk_s(chunk, sequence.num_computed)
        if not sequence.started:
            sequence.started = True
            cost_s += self.profile.prefill_request_s
        # Findable from now on, as in vLLM: who is admitted later in the same step reads what this one writes.
        self._commit(sequence, sequence.num_computed + chunk)
        return chunk, cost_s

    def _admit(self, sequence: Sequence) -> bool:
        block_size = self.profile.block_size
        # The last token is always computed: its logits are the first new token.
        matchable = sequence.hashes[: (sequence.num_tokens - 1) // block_size]
        num_cached = self.cache.match(matchable)
        num_new = -(-sequence.num_tokens // block_size) - num_cached
        blocks = self.cache.allocate(matchable[:num_cached], num_new)
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.num_computed = num_cached * block_size
        sequence.num_committed = num_cached
        if sequence.generated == 0:
            sequence.cached_tokens = sequence.num_computed
            self.prompt_tokens += sequence.num_prompt_tokens
            self.cached_tokens += sequence.cached_tokens
        self._running.append(sequence)
        return True

    def _schedule_decodes(self) -> list[Sequence]:
        """The sequences that decode in this step, each with a block for its newest token."""
        decodes: list[Sequence] = []
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            index += 1
            if sequence.is_prefilling:
                continue
            is_full = sequence.num_tokens > len(sequence.blocks) * self.profile.block_size
            if is_full and not self._grow(sequence):
                break
            decodes.append(sequence)
        return decodes

    def _grow(self, sequence: Sequence) -> bool:
        """Give a decode one more block, preempting from the tail; False if it was itself the tail."""
        while (blocks := self.cache.allocate((), 1)) is None:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += blocks
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.blocks = []
        sequence.num_computed = 0
        sequence.num_committed = 0
        sequence.started = False
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self.cache.release(sequence.blocks)

    def _commit(self, sequence: Sequence, num_computed: int) -> None:
        """Publish the blocks that `num_computed` tokens fill."""
        block_size = self.profile.block_size
        first, last = sequence.num_committed, num_computed // block_size
        if last <= first:
            return
        hashes = sequence.hashes
        if last > len(hashes):
            known = len(hashes)
            tokens = sequence.tokens(known * block_size, last * block_size)
            parent = hashes[-1] if hashes else sequence.root
            hashes += extend_chain(parent, tokens, block_size * BYTES_PER_TOKEN)
            last = min(last, len(hashes))
        if last <= first:
            return
        parent_hash = hashes[first - 1] if first else None
        tokens = sequence.tokens(first * block_size, last * block_size)
        self.cache.commit(
            sequence.blocks[first:last],
            hashes[first:last],
            parent_hash,
            tokens,
            sequence.request.salt,
            sequence.request.session,
        )
        sequence.num_committed = last
