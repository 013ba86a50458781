"""llm-d's weighted scorers: prefix, queue and KV use, behind a filter that is sticky while that costs little.

Source: BASELINES.md: default weights prefix 3, queue 2, KV use 2, each 0..1; sticky until the TTFT penalty exceeds a
bound. Not known: what makes an instance sticky (here it holds the longest match in the pool, of at least
`STICKY_SHARE` of the prompt), the bound, how the scores are normalised (here prefix by the longest match, the other
two between the fewest and the most in the pool), whether the queue counts what is being prefilled (here it does) and
ties (here the first instance).
"""

from collections.abc import Sequence

from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import expected

PREFIX_WEIGHT = 3.0
QUEUE_WEIGHT = 2.0
KV_WEIGHT = 2.0
STICKY_SHARE = 0.5
MAX_TTFT_PENALTY_S = 1.0
"""More than the best TTFT of the pool."""


class LlmD:
    """Filter, score, pick."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The highest score among those that the filter leaves."""
        depths = sight.depths(flight.arrival)
        among = self._sticky(flight, sight, depths)
        if len(among) == 1:
            return sight.choice(flight, among[0])
        longest = max(depths[index] for index in among) or 1
        queue = _spread([sight.loads[index].num_pending for index in among])
        kv = _spread([sight.loads[index].kv_blocks for index in among])
        scores = [
            PREFIX_WEIGHT * depths[index] / longest + QUEUE_WEIGHT * queue[at] + KV_WEIGHT * kv[at]
            for at, index in enumerate(among)
        ]
        return sight.choice(flight, among[scores.index(max(scores))])

    def _sticky(self, flight: Flight, sight: Sight, depths: Sequence[int]) -> Sequence[int]:
        """Those that hold the prefix, or all where holding on to them would cost too much TTFT."""
        usable = sight.usable
        longest = max(depths[index] for index in usable)
        if longest * CHUNK_TOKENS < STICKY_SHARE * flight.arrival.input_tokens:
            return usable
        ttft_s = {}
        for index in usable:
            seen = expected(flight, sight, index, depths[index])
            ttft_s[index] = seen.load_s + seen.own_s
        sticky = [index for index in usable if depths[index] == longest]
        penalty_s = min(ttft_s[index] for index in sticky) - min(ttft_s.values())
        return usable if penalty_s > MAX_TTFT_PENALTY_S else sticky


def _spread(values: Sequence[int]) -> list[float]:
    """1 for the fewest, 0 for the most; 1 for all where they are equal."""
    least, most = min(values), max(values)
    return [(most - value) / (most - least) if most > least else 1.0 for value in values]
