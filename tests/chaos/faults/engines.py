"""Engines that misbehave while they run."""

import asyncio
from typing import Any

from ...integration.load_checks import set_faults
from ..world import World
from . import base
from .base import Fault


class EngineFault(Fault):
    """What the simulated engine is told to do wrong; `part` is its worker."""

    of = "worker"
    promise = base.LOST_BEFORE

    def settings(self) -> dict[str, Any]:
        """The engine's fault settings."""
        raise NotImplementedError

    async def apply(self, world: World) -> None:
        await set_faults(world.engine_url(self.part), **self.settings())

    async def heal(self, world: World) -> None:
        try:
            await set_faults(world.engine_url(self.part), reset=True)
        except OSError:
            await asyncio.sleep(0)  # it was killed meanwhile: the next one is healthy


class Slow(EngineFault):
    """Ten times slower: new requests avoid it, queued ones move."""

    promise = base.OVERLOAD
    lasts_s = (3.0, 8.0)

    def settings(self) -> dict[str, Any]:
        return {"slow_down": 10.0}


class DiesHalfWay(EngineFault):
    """The next few answers break off after some tokens."""

    promise = base.LOST_HALF_WAY

    def settings(self) -> dict[str, Any]:
        return {"die_after_tokens": 7, "times": 8}


class DiesAtOnce(EngineFault):
    """The next few connections end before the first token."""

    def settings(self) -> dict[str, Any]:
        return {"die_after_tokens": 0, "times": 8}


class Late(EngineFault):
    """Every request is looked at half a second late."""

    promise = base.OVERLOAD

    def settings(self) -> dict[str, Any]:
        return {"latency_ms": 500.0}


class Unhealthy(EngineFault):
    """It says that it is not well, and works."""

    def settings(self) -> dict[str, Any]:
        return {"unhealthy": True}


class Fails(EngineFault):
    """Every third request gets its 500, which is the engine's own answer and passed on."""

    promise = base.UNPROMISED
    visible = frozenset(("http_500",))

    def settings(self) -> dict[str, Any]:
        return {"error_rate": 0.33}


class Hangs(EngineFault):
    """It takes two requests and never answers them: they end after the worker's time-out."""

    promise = base.UNPROMISED
    visible = frozenset(("http_504",))
    lasts_s = (2.0, 4.0)

    def settings(self) -> dict[str, Any]:
        return {"hang": True, "times": 2}


class Garbles(Fault):
    """What it says is no HTTP."""

    of = "worker"
    promise = base.LOST_HALF_WAY
    lasts_s = (0.5, 2.0)

    async def apply(self, world: World) -> None:
        world.links[f"engine:{self.part}"].garbles = True

    async def heal(self, world: World) -> None:
        world.links[f"engine:{self.part}"].mend()
