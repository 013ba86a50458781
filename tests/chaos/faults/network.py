"""Partitions, and telemetry that gets lost, doubled, late or out of order."""

from collections.abc import Collection
from dataclasses import dataclass

from ...relay import Relay
from ..world import World
from . import base
from .base import Fault


@dataclass
class Partition(Fault):
    """Nothing passes between some peers and a link; packets vanish, or connections are reset."""

    resets: bool = False
    lasts_s = (1.0, 8.0)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.part}, {'resets' if self.resets else 'silent'})"

    def _break(self, world: World, link: str, peers: Collection[str]) -> None:
        (world.links[link].cut if self.resets else world.links[link].silence)(peers)


class RoutersFromWorker(Partition):
    """No router reaches a worker: it is alive and nobody hears it."""

    of = "worker"
    promise = base.LOST_HALF_WAY

    async def apply(self, world: World) -> None:
        self._break(world, f"session:{self.part}", world.routers)

    async def heal(self, world: World) -> None:
        world.links[f"session:{self.part}"].mend()


class OneRouterFromWorker(RoutersFromWorker):
    """One router does not reach a worker that others reach."""

    async def apply(self, world: World) -> None:
        self._break(world, f"session:{self.part}", world.routers[:1])


class RouterFromWorkers(Fault):
    """A router's network blinks: it loses every worker at once, and has them back at once."""

    of = "router"
    promise = base.LOST_HALF_WAY
    # While it reaches nobody it says so to whoever comes.
    retried = base.TURNED_AWAY
    lasts_s = (0.0, 0.8)

    async def apply(self, world: World) -> None:
        for worker in world.workers:
            world.links[f"session:{worker}"].cut((self.part,))

    async def heal(self, world: World) -> None:
        for worker in world.workers:
            world.links[f"session:{worker}"].mend()


class WorkerFromStore(Partition):
    """A worker's lease lapses while it works."""

    of = "worker"
    promise = base.STORE

    async def apply(self, world: World) -> None:
        self._break(world, f"store:{self.part}", ("*",))

    async def heal(self, world: World) -> None:
        world.links[f"store:{self.part}"].mend()


class RouterFromStore(WorkerFromStore):
    """A router decides alone, and its charges are reaped while it lives."""

    of = "router"


class RebalancersFromWorker(Partition):
    """Rebalancers neither hear a worker nor reach it."""

    of = "worker"
    promise = base.TELEMETRY

    async def apply(self, world: World) -> None:
        world.relays[f"reports:{self.part}"].loses = 1.0
        self._break(world, f"session:{self.part}", world.rebalancers)

    async def heal(self, world: World) -> None:
        world.relays[f"reports:{self.part}"].mend()
        world.links[f"session:{self.part}"].mend()


class LeaderFromStore(Partition):
    """The leader loses the store and with it the lead; another takes it, and there are two for a moment."""

    promise = base.REBALANCER
    lasts_s = (4.0, 8.0)

    async def apply(self, world: World) -> None:
        self.part = await world.leader() or world.rebalancers[0]
        self._break(world, f"store:{self.part}", ("*",))

    async def heal(self, world: World) -> None:
        world.links[f"store:{self.part}"].mend()


class TelemetryFault(Fault):
    """Something between publishers and subscribers: queue reports and KV events of every worker alike."""

    promise = base.TELEMETRY
    lasts_s = (2.0, 8.0)

    async def apply(self, world: World) -> None:
        for relay in world.relays.values():
            self.spoil(relay)

    def spoil(self, relay: Relay) -> None:
        """What happens to messages."""
        raise NotImplementedError

    async def heal(self, world: World) -> None:
        for relay in world.relays.values():
            relay.mend()


class TelemetryIsLost(TelemetryFault):
    """Half of the messages never arrive."""

    def spoil(self, relay: Relay) -> None:
        relay.loses = 0.5


class TelemetryIsSilent(TelemetryFault):
    """None arrives."""

    def spoil(self, relay: Relay) -> None:
        relay.loses = 1.0


class TelemetryIsDoubled(TelemetryFault):
    """Half of them arrive twice."""

    def spoil(self, relay: Relay) -> None:
        relay.doubles = 0.5


class TelemetryIsLate(TelemetryFault):
    """Each is two seconds on its way."""

    def spoil(self, relay: Relay) -> None:
        relay.late_s = 2.0


class TelemetryIsSwapped(TelemetryFault):
    """Each second one overtakes the first."""

    def spoil(self, relay: Relay) -> None:
        relay.swaps = True
