"""AIBrix's prefix-cache routing: the best match that is not overloaded; fewest requests when the pool is uneven.

Source: BASELINES.md: max - min running > 8 -> least requests; else the best match with running <= mean + 1 sigma.
`running` is requests outstanding, the engine's queue included. Not known: what happens without any match (here
fewest requests) and ties (here fewest requests, then the first).
"""

from statistics import fmean, pstdev

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import num_requests

MAX_SPREAD = 8
MAX_SIGMAS = 1.0


class AIBrixPrefix:
    """Match under a bound on load."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """Choose by the match, or by load where that is uneven."""
        usable = sight.usable
        running = {index: num_requests(sight.loads[index]) for index in usable}
        if max(running.values()) - min(running.values()) > MAX_SPREAD:
            return sight.choice(flight, min(usable, key=running.__getitem__))
        bound = fmean(running.values()) + MAX_SIGMAS * pstdev(running.values())
        depths = sight.depths(flight.arrival)
        # Someone is at or under the mean; rounding must not hide it.
        fit = [index for index in usable if running[index] <= bound + 1e-9]
        return sight.choice(flight, min(fit, key=lambda index: (-depths[index], running[index])))
