"""What the system in containers says of itself: who is there, what is left, which spans have come."""

import json
from typing import Any

import aiohttp

from .conftest import Compose


async def state_of(system: Compose) -> dict[str, Any]:
    """What a router says of itself."""
    async with aiohttp.ClientSession() as http, http.get(f"{system.url}/readyz") as response:
        found: dict[str, Any] = await response.json()
        return found


async def all_back(system: Compose) -> bool:
    """Every instance can be reached."""
    return len((await state_of(system))["instances"]) == 4


async def at_rest(system: Compose) -> bool:
    """Nothing is left in any router, on any instance, or in Redis."""
    state = await state_of(system)
    held = system.run("exec", "-T", "redis", "redis-cli", "HLEN", "dm:{demo}:charges").strip()
    return (state["in_flight"], state["live_charges"], state["exchanges"], held) == (0, 0, 0, "0")


async def spans(system: Compose) -> list[dict[str, Any]]:
    """All that the receiver has been sent since it started."""
    async with aiohttp.ClientSession() as http, http.get(system.spans_url) as response:
        found: list[dict[str, Any]] = json.loads(await response.read())
        return found
