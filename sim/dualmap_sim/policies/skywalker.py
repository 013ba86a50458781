"""SkyWalker: push only to an instance without a pending request, else wait at the router.

Source: BASELINES.md: longest prefix match among those without a pending request, probed every 100 ms; else the
router's FCFS queue. `skywalker-ch` walks a ring from the user's key instead of matching prefixes.
Not modelled: the spill to a peer region, as there is one region. Not known: whether a request that is being prefilled
is pending (here it is, until its first token), ties (here fewest requests, then the first), and whether the ring
variant pushes as selectively (here it does).
"""

from collections.abc import Sequence

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import num_requests
from dualmap_sim.policies.ring import MemberRing, prefix_ring_key, text_ring_key
from dualmap_sim.workloads.arrival import Arrival


class SkyWalker:
    """Selective pushing by prefix."""

    def place(self, flight: Flight, sight: Sight) -> Choice | None:
        """The longest match that has nothing pending; None while all have."""
        free = without_pending(sight)
        if not free:
            return None
        depths = sight.depths(flight.arrival)
        return sight.choice(
            flight, min(free, key=lambda index: (-depths[index], num_requests(sight.loads[index])))
        )


class SkyWalkerHash:
    """Selective pushing along a ring."""

    def __init__(self) -> None:
        self._ring = MemberRing()

    def place(self, flight: Flight, sight: Sight) -> Choice | None:
        """The first on the ring that has nothing pending; None while all have."""
        free = without_pending(sight)
        if not free:
            return None
        walk = self._ring.walk(user_ring_key(flight.arrival), sight)
        return sight.choice(flight, next(index for index in walk if index in free))


def without_pending(sight: Sight) -> Sequence[int]:
    """The instances where no request waits for its first token."""
    return [index for index in sight.usable if not sight.loads[index].num_pending]


def user_ring_key(arrival: Arrival) -> int:
    """Whose request it is: its session, else its tenant, else its prefix."""
    user = arrival.session or arrival.tenant
    return text_ring_key(user) if user else prefix_ring_key(arrival)
