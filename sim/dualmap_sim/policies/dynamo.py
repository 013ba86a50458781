"""Dynamo's KV router: overlap weight x uncached prefill blocks + active decode blocks, the smallest.

Source: BASELINES.md; overlap weight 1 and the softmax at temperature 0, its defaults. The prefill blocks are what the
instance would have to compute with this request on it: its own uncached ones and those that still wait there.
Not known: whether a request's blocks are active from its placement or from its first token (here from its placement:
it will decode there), and whether blocks that requests share count once (here each request's prompt counts).
"""

from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import uncached_tokens

OVERLAP_WEIGHT = 1.0


class Dynamo:
    """Blocks to prefill and blocks that decode."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The instance of the smallest cost; ties go to the first."""
        arrival, depths = flight.arrival, sight.depths(flight.arrival)

        def cost(index: int) -> float:
            load = sight.loads[index]
            tokens = load.pending_tokens + uncached_tokens(arrival, depths[index])
            return OVERLAP_WEIGHT * tokens / CHUNK_TOKENS + load.kv_blocks

        return sight.choice(flight, min(sight.usable, key=cost))
