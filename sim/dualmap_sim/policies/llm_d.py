"""llm-d's weighted scorers: prefix, queue and KV use, behind a filter that is sticky while that costs little.

Source: BASELINES.md: default weights prefix 3, queue 2, KV use 2, each 0..1; sticky until the TTFT penalty exceeds a
bound. Not known, and how it is here:
* the scores: prefix by its share of the prompt, KV use by the share of the engine's blocks that decoding requests
  hold, as engines report it, and the queue, which has no bound, between the fewest and the most in the pool;
* what the queue counts: all without a first token;
* what makes an instance sticky: the longest match in the pool, of at least `STICKY_SHARE` of the prompt;
* the penalty: expected TTFT there over the smallest in the pool, up to `MAX_TTFT_PENALTY_S`;
* ties: the first instance.
"""

from collections.abc import Sequence

from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import cached_tokens, fcfs_ttft_s

PREFIX_WEIGHT = 3.0
QUEUE_WEIGHT = 2.0
KV_WEIGHT = 2.0
STICKY_SHARE = 0.5
MAX_TTFT_PENALTY_S = 1.0
"""More than the best TTFT of the pool."""


class LlmD:
    """Filter, score, pick."""

    def __init__(self, kv_blocks: int) -> None:
        self._kv_blocks = kv_blocks

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The highest score among those that the filter leaves."""
        depths = sight.depths(flight.arrival)
        among = self._sticky(flight, sight, depths)
        if len(among) == 1:
            return sight.choice(flight, among[0])
        queues = [sight.loads[index].num_pending for index in among]
        least, most = min(queues), max(queues)

        def score(index: int) -> float:
            load = sight.loads[index]
            prefix = cached_tokens(flight.arrival, depths[index]) / flight.arrival.input_tokens
            queue = (most - load.num_pending) / (most - least) if most > least else 1.0
            kv = max(1.0 - load.decode_blocks / self._kv_blocks, 0.0)
            return PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * queue + KV_WEIGHT * kv

        return sight.choice(flight, max(among, key=score))

    def _sticky(self, flight: Flight, sight: Sight, depths: Sequence[int]) -> Sequence[int]:
        """Those that hold the prefix, or all where holding on to them would cost too much TTFT."""
        usable = sight.usable
        longest = max(depths[index] for index in usable)
        if longest * CHUNK_TOKENS < STICKY_SHARE * flight.arrival.input_tokens:
            return usable
        ttft_s = fcfs_ttft_s(flight, sight, depths)
        sticky = [index for index in usable if depths[index] == longest]
        penalty_s = min(ttft_s[index] for index in sticky) - min(ttft_s.values())
        return usable if penalty_s > MAX_TTFT_PENALTY_S else sticky
