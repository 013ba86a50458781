"""Waiting for what an engine is going to do, never for time to pass."""

import asyncio
from typing import Any

import aiohttp


async def stats(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/admin/stats") as reply:
        body: dict[str, Any] = await reply.json()
        return body


async def wait_for_stats(
    http: aiohttp.ClientSession, timeout_s: float = 5.0, **wanted: Any
) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        while True:
            now = await stats(http)
            if all(now[name] == value for name, value in wanted.items()):
                return now
            await asyncio.sleep(0)


async def set_faults(http: aiohttp.ClientSession, **faults: Any) -> None:
    async with http.post("/admin/faults", json=faults) as reply:
        assert reply.status == 200, await reply.text()


NOTHING_LEFT = {"requests": 0, "sequences": 0, "listeners": 0, "pinned_blocks": 0}
