"""Consistent hashing: one ring on the prompt's first chunks, whatever the load.

Source: BASELINES.md. The number of chunks is a setting; its reference figure hashes two.
"""

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.ring import KEY_CHUNKS, MemberRing, prefix_ring_key


class ConsistentHash:
    """A prefix belongs to one instance."""

    def __init__(self, num_chunks: int = KEY_CHUNKS) -> None:
        self._num_chunks = num_chunks
        self._ring = MemberRing()

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The owner of the key's place on the ring."""
        key = prefix_ring_key(flight.arrival, self._num_chunks)
        return sight.choice(flight, next(self._ring.walk(key, sight)))
