"""LMetric: the smallest product of prefill work and requests; no parameters.

Source: BASELINES.md: argmin (queued + new uncached prefill tokens) x (running + queued requests).
Not known: ties, which here go to the first instance.
"""

from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight


class LMetric:
    """Tokens times requests."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The instance where the product is smallest, this request counted in both factors."""
        arrival, depths = flight.arrival, sight.depths(flight.arrival)

        def cost(index: int) -> float:
            load = sight.loads[index]
            uncached = arrival.input_tokens - min(depths[index] * CHUNK_TOKENS, arrival.input_tokens - 1)
            return (load.pending_tokens + uncached) * (load.num_pending + load.num_decoding + 1)

        return sight.choice(flight, min(sight.usable, key=cost))
