"""The pool as this router knows it: its members, its rings, and which instances a request may be offered to."""

from collections.abc import Iterable, Set
from dataclasses import dataclass

from dualmap.hash_ring import RingPair
from dualmap.ttft import DEFAULT_SPEED, typical_speed
from dualmap_router.ring_keeper import RingKeeper
from dualmap_service.registry import Member, Membership


@dataclass(frozen=True, slots=True)
class Offer:
    """Instances that a request can be sent to now."""

    names: tuple[str, ...]
    """Sorted."""
    members: frozenset[str]
    packed: bytes
    """As the functions take them."""

    def without(self, lost: Set[str]) -> "Offer":
        """What is left of it."""
        return make_offer(name for name in self.names if name not in lost)


def make_offer(names: Iterable[str]) -> Offer:
    """An offer of these instances."""
    names = tuple(names)
    return Offer(names, frozenset(names), "\n".join(names).encode())


class Pool:
    """Follows the membership and the sessions."""

    def __init__(self) -> None:
        self.membership = Membership()
        self.typical = DEFAULT_SPEED
        """The speed of an instance that nothing is known of."""
        self.everyone = make_offer(())
        self._partial: dict[str, Offer] = {}
        self._reachable: Set[str] = frozenset()
        self._rings = RingKeeper(self._rings_changed)

    @property
    def rings(self) -> RingPair:
        """The rings as they are now."""
        return self._rings.current

    def member(self, instance: str) -> Member | None:
        """The registry's entry of an instance."""
        return self.membership.members.get(instance)

    def refresh(self, membership: Membership) -> None:
        """Take the newest telemetry of a membership that may not have changed."""
        self.membership = membership
        self.typical = typical_speed(
            member.perf.speed for member in membership.members.values() if member.perf is not None
        )

    def update(self, membership: Membership, reachable: Set[str]) -> None:
        """Take a new membership, and which of its instances have a session."""
        self.refresh(membership)
        weights = {
            name: member.registration.weight
            for name, member in membership.members.items()
            if member.takes_new_keys
        }
        self._reachable = weights.keys() & reachable
        self._rings.follow(weights)

    def offer(self, model: str | None) -> Offer:
        """The instances that serve a model or an adapter; everyone where nothing is known of the name."""
        if not self._partial or model is None:
            return self.everyone
        return self._partial.get(model, self.everyone)

    def _rings_changed(self) -> None:
        # Whoever has just come is offered when the rings know it, whoever has left is not, whatever they say.
        self.everyone = make_offer(name for name in self.rings.members if name in self._reachable)
        serving: dict[str, list[str]] = {}
        for name, member in sorted(self.membership.members.items()):
            for model in member.registration.serves:
                instances = serving.setdefault(model, [])
                if name in self.everyone.members:
                    instances.append(name)
        everywhere = len(self.everyone.names)
        self._partial = {
            model: make_offer(names) for model, names in serving.items() if len(names) < everywhere
        }
