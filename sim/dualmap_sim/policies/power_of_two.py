"""Power of two choices: two random instances, the less loaded.

Source: BASELINES.md. Load is that of `least-loaded` there, pending uncached prefill tokens, so that the two
differ in the sampling alone; the rule itself leaves the measure open.
"""

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight


class PowerOfTwo:
    """Two draws, distinct where there are two instances."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The one with fewer pending tokens; ties go to the first drawn."""
        drawn = sight.rng.sample(sight.usable, min(2, len(sight.usable)))
        return sight.choice(flight, min(drawn, key=lambda index: sight.loads[index].pending_tokens))
