"""The serial engine of the reference study: one prefill at a time, decodes only slow it down.

A prefill of u uncached tokens behind c cached ones takes (a + b*u + c2*u*(c + u/2)) * (1 + 0.005 * running)
seconds, where `running` counts the sequences that decode when it begins. Each of those takes a fixed time a
token. It is the model of BASELINES.md's figures; `chunked` is the one that engines resemble.
"""

import math
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from dualmap.types import PrefillSpeed
from dualmap_sim.fleet.engine import CHUNK_TOKENS, EngineListener, Sequence
from dualmap_sim.fleet.loop import Loop, Timer
from dualmap_sim.fleet.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class SerialProfile:
    """Speeds of a serial engine; seconds."""

    speed: PrefillSpeed = PrefillSpeed(0.015, 90e-6, 2.7e-9)
    slow_down_per_running: float = 0.005
    decode_s_per_token: float = 0.02


class SerialEngine:
    """First come, first served, one prefill at a time."""

    def __init__(
        self, loop: Loop, cache: PrefixCache, listener: EngineListener, profile: SerialProfile | None = None
    ) -> None:
        self._loop = loop
        self._cache = cache
        self._listener = listener
        self._profile = profile or SerialProfile()
        self._waiting: deque[Sequence] = deque()
        self._current: Sequence | None = None
        self._began_s = 0.0
        self._slow_down = 1.0
        self._timer: Timer | None = None
        self._decoding: dict[Sequence, Timer] = {}
        self.speed_factor = 1.0
        """Above 1: slower than its profile."""
        self.busy_s = 0.0

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._decoding) + (self._current is not None)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._waiting)

    @property
    def kv_use(self) -> float:
        """Share of the blocks that sequences hold."""
        return self._cache.num_in_use / self._cache.num_blocks

    def cached_chunks(self, chunks: SequenceOf[int]) -> int:
        """Leading chunks of a prompt that it holds."""
        return self._cache.match(chunks)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)
        self._start_next()

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out; the chunks that it has computed by now stay cached."""
        if sequence is self._current:
            assert self._timer is not None
            self._timer.cancel()
            self._current = None
            self.busy_s += self._loop.now_s - self._began_s
            self._store(sequence, self._computed_tokens(sequence))
            self._release(sequence)
        elif sequence in self._decoding:
            self._decoding.pop(sequence).cancel()
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        self._start_next()

    def kill(self) -> list[Sequence]:
        """Lose everything, and return the sequences that were inside."""
        lost = [*self._decoding, *([self._current] if self._current else []), *self._waiting]
        for timer in self._decoding.values():
            timer.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for sequence in lost:
            self._release(sequence)
        self._decoding.clear()
        self._waiting.clear()
        self._current = None
        self._cache.clear()
        return lost

    def _start_next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        sequence = self._waiting[0]
        arrival = sequence.arrival
        # The last token is always computed: its logits are the first new token.
        matchable = arrival.chunks[: (arrival.input_tokens - 1) // CHUNK_TOKENS]
        num_cached = self._cache.match(matchable)
        sequence.lease = self._cache.acquire(arrival.chunks, num_cached, sequence.num_blocks)
        if sequence.lease is None:
            return
        self._waiting.popleft()
        self._current = sequence
        sequence.cached_tokens = num_cached * CHUNK_TOKENS
        self._began_s = self._loop.now_s
        self._slow_down = 1.0 + self._profile.slow_down_per_running * len(self._decoding)
        self._slow_down *= self.speed_factor
        uncached = arrival.input_tokens - sequence.cached_tokens
        seconds = self._profile.speed.prefill_s(uncached, sequence.cached_tokens) * self._slow_down
        self._timer = self._loop.after(seconds, self._prefilled, sequence)

    def _prefilled(self, sequence: Sequence) -> None:
        self.busy_s += self._loop.now_s - self._began_s
        self._current = None
        self._store(sequence, sequence.arrival.input_tokens)
        sequence.prefilled = True
        seconds = (sequence.arrival.output_tokens - 1) * self._profile.decode_s_per_token
        self._decoding[sequence] = self._loop.after(seconds, self._finished, sequence)
        self._listener.first_token(sequence)
        self._start_next()

    def _finished(self, sequence: Sequence) -> None:
        del self._decoding[sequence]
        self._release(sequence)
        self._listener.finished(sequence)
        self._start_next()

    def _store(self, sequence: Sequence, num_tokens: int) -> None:
        first, last = sequence.cached_tokens // CHUNK_TOKENS, num_tokens // CHUNK_TOKENS
        assert sequence.lease is not None
        self._cache.store(sequence.lease, sequence.arrival.chunks[first:last])

    def _release(self, sequence: Sequence) -> None:
        if sequence.lease is not None:
            self._cache.release(sequence.lease)
            sequence.lease = None

    def _computed_tokens(self, sequence: Sequence) -> int:
        """Prompt tokens that have their KV by now: the prefill's cost so far, solved for its tokens."""
        speed, cached = self._profile.speed, sequence.cached_tokens
        spent_s = (self._loop.now_s - self._began_s) / self._slow_down - speed.a_s
        if spent_s <= 0.0:
            return cached
        half, linear = speed.c_s_per_token2 / 2, speed.b_s_per_token + speed.c_s_per_token2 * cached
        if half <= 0.0:
            done = spent_s / linear if linear > 0.0 else 0.0
        else:
            done = (math.sqrt(linear * linear + 4 * half * spent_s) - linear) / (2 * half)
        return min(cached + int(done), sequence.arrival.input_tokens - 1)
