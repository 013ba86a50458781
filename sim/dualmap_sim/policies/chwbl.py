"""Consistent hashing with bounded loads, as KubeAI has it: the first on the ring that is not too loaded.

Source: BASELINES.md: next ring position while load > 1.25 x mean; load is requests outstanding.
Not known: whether load and mean count the request itself (here both do), and who takes it when it would be too much
for everybody, as in a pool that is nearly idle: here the owner of its key.
"""

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import num_requests
from dualmap_sim.policies.ring import KEY_CHUNKS, MemberRing, prefix_ring_key

LOAD_FACTOR = 1.25


class BoundedLoadHash:
    """A ring whose owners pass on what is too much."""

    def __init__(self, factor: float = LOAD_FACTOR, num_chunks: int = KEY_CHUNKS) -> None:
        self._factor = factor
        self._num_chunks = num_chunks
        self._ring = MemberRing()

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The first in ring order with room under the bound."""
        usable = sight.usable
        total = sum(num_requests(sight.loads[index]) for index in usable) + 1
        bound = self._factor * total / len(usable)
        walk = list(self._ring.walk(prefix_ring_key(flight.arrival, self._num_chunks), sight))
        fits = (index for index in walk if num_requests(sight.loads[index]) + 1 <= bound)
        return sight.choice(flight, next(fits, walk[0]))
