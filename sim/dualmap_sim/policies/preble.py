"""Preble's E2: exploit where the prefix is when it is most of the prompt, else explore.

Source: BASELINES.md, with its window of 3 minutes.
* Exploit if cached > uncached tokens: of the instances that hold the longest match, the least load L.
* Else argmin L + M + P. L = sum over the window's prefixes of miss rate x count x prefill time / holders, plus running
  x median output x median TPOT; M = prefill time, weighted by miss rate, of what LRU would evict; P = prefill of the
  missed tokens.
* Rebalance: an exploit that would go to the highest load goes to the lowest if the highest is 1.5 x that or more.
* Replicate: where the matched prefix's mean TTFT doubled between the window's halves, its next request goes to the
  least load among those without it; its TTFTs are then counted anew.

Not known: whether `running` counts what waits for its prefill (here it does not), how many requests make a mean (here
one), the miss rate of what nobody asked for within the window (here 0), and ties (here the first instance).
"""

import math
from collections.abc import Mapping, Sequence

from dualmap.types import PrefillSpeed
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import cached_tokens
from dualmap_sim.policies.preble_window import PrefixWindow, WindowMedian
from dualmap_sim.policies.sent_prefixes import SentPrefixes
from dualmap_sim.workloads.trace_line import num_blocks

WINDOW_S = 180.0
IMBALANCE = 1.5


class Preble:
    """Exploit, explore, rebalance, replicate."""

    def __init__(self, kv_blocks: int) -> None:
        self._kv_blocks = kv_blocks
        self._window = PrefixWindow(WINDOW_S)
        self._sent: dict[int, SentPrefixes] = {}
        self._output_tokens = WindowMedian(WINDOW_S)
        self._tpot_s = WindowMedian(WINDOW_S)

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """Choose, and remember what was allocated."""
        chunks, now_s = flight.arrival.chunks, sight.now_s
        self._window.expire(now_s)
        depths = sight.depths(flight.arrival)
        index = self._choose(flight, sight, depths)
        speed = self._speed(flight, sight, index)
        self._window.allocate(now_s, index, chunks, depths[index], speed)
        memory = self._memory(index)
        memory.add(chunks)
        memory.trim()
        return sight.choice(flight, index)

    def first_token(self, flight: Flight) -> None:
        """Its TTFT is one of its prefixes'."""
        assert flight.first_token_s is not None and flight.ttft_s is not None
        self._window.first_token(flight.first_token_s, flight.arrival.chunks, flight.ttft_s)

    def finished(self, flight: Flight) -> None:
        """How much it put out, and how fast."""
        assert flight.first_token_s is not None and flight.finished_s is not None
        tokens = flight.arrival.output_tokens
        self._output_tokens.add(flight.finished_s, tokens)
        if tokens > 1:
            self._tpot_s.add(flight.finished_s, (flight.finished_s - flight.first_token_s) / (tokens - 1))

    def _choose(self, flight: Flight, sight: Sight, depths: Sequence[int]) -> int:
        arrival, usable = flight.arrival, sight.usable
        decode_s = self._output_tokens.median(sight.now_s) * self._tpot_s.median(sight.now_s)
        load_s = {i: self._window.load_s(i) + sight.loads[i].num_decoding * decode_s for i in usable}
        longest = max(depths[index] for index in usable)
        cached = cached_tokens(arrival, longest)
        # 1. Most of it would have to be computed everywhere: explore.
        if cached <= arrival.input_tokens - cached:
            return self._explore(flight, sight, depths, load_s)
        # 2. Its prefix has become slow: one more instance gets it.
        holders = [index for index in usable if depths[index] == longest]
        if len(holders) < len(usable) and self._became_slow(arrival.chunks[longest - 1], sight.now_s):
            return min((index for index in usable if index not in holders), key=load_s.__getitem__)
        # 3. Exploit, unless that would add to the highest load of an uneven pool.
        chosen = min(holders, key=load_s.__getitem__)
        return self._relieved(chosen, load_s)

    def _relieved(self, chosen: int, load_s: Mapping[int, float]) -> int:
        lowest = min(load_s, key=load_s.__getitem__)
        highest_s = max(load_s.values())
        uneven = highest_s > 0.0 and highest_s >= IMBALANCE * load_s[lowest]
        return lowest if uneven and load_s[chosen] == highest_s else chosen

    def _became_slow(self, chunk: int, now_s: float) -> bool:
        prefix = self._window.prefix(chunk)
        if prefix is None or not prefix.ttft_doubled(now_s, WINDOW_S):
            return False
        prefix.ttfts.clear()
        return True

    def _explore(
        self, flight: Flight, sight: Sight, depths: Sequence[int], load_s: Mapping[int, float]
    ) -> int:
        """The smallest L + M + P."""
        arrival = flight.arrival
        without_m = []
        for index, load in load_s.items():
            cached = cached_tokens(arrival, depths[index])
            prefill_s = self._speed(flight, sight, index).prefill_s(arrival.input_tokens - cached, cached)
            without_m.append((load + prefill_s, index))
        best = (math.inf, 0)
        for cost, index in sorted(without_m):
            # M is never negative: who is behind without it stays behind.
            if cost > best[0]:
                break
            best = min(best, (cost + self._evicted_s(flight, index, depths[index]), index))
        return best[1]

    def _evicted_s(self, flight: Flight, index: int, depth: int) -> float:
        """M: what would have to go."""
        num_new = num_blocks(flight.arrival.input_tokens) - depth
        return self._window.lost_s(self._memory(index).evicted_by(num_new))

    def _speed(self, flight: Flight, sight: Sight, index: int) -> PrefillSpeed:
        return sight.view(flight, index, 0).speed

    def _memory(self, index: int) -> SentPrefixes:
        memory = self._sent.get(index)
        if memory is None:
            memory = self._sent[index] = SentPrefixes(self._kv_blocks)
        return memory
