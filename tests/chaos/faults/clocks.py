"""A part's wall clock is set, forwards or backwards, while it runs."""

from ..world import World
from . import base
from .base import Fault


class ClockSteps(Fault):
    """By an hour, or by what `ahead_s` says; leases and time-outs live by monotonic clocks and the store's."""

    promise = base.CLOCKS
    ahead_s = -3600.0

    async def apply(self, world: World) -> None:
        world.set_clock(self.part, self.ahead_s)

    async def heal(self, world: World) -> None:
        world.set_clock(self.part, 0.0)
