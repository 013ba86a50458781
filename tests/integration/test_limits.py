"""Tenants' limits in a running fleet: one number over all routers, which outlives a killed one and Redis itself."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from dualmap_cli.stack import Stack, StackOptions
from dualmap_wire.redis_keys import PoolKeys

from ..waiting import eventually
from .conftest import chat, error_of, leftovers, samples, unique_text
from .guarded import ACME, AT_ONCE, BURST, CHAT, FEW, SLOW, ask, write_keys


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Stack]:
    """Two routers that know limits; whatever a test does, nothing is left of any tenant."""
    flags = {"api_keys_file": write_keys(tmp_path / "keys.json")}
    async with Stack(StackOptions(routers=2, workers=2, rebalancers=1, router_flags=flags)) as stack:
        yield stack
        urls = [url for name, url in zip(("router-1", "router-2"), stack.router_urls, strict=True)
                if stack.children[name].running]  # fmt: skip
        assert (await leftovers(stack, urls=urls)).clean
        if stack.store is not None and stack.store.running:
            await eventually(lambda: _nothing_inside(stack))


async def _nothing_inside(stack: Stack) -> bool:
    redis: Any = Redis.from_url(stack.redis_url)
    try:
        return not [key async for key in redis.scan_iter(PoolKeys(stack.options.pool).inside("*"))]
    finally:
        await redis.aclose()


class Streams:
    """Streams that stay open until they are let go."""

    def __init__(self, http: aiohttp.ClientSession, stack: contextlib.AsyncExitStack) -> None:
        self._http = http
        self._stack = stack
        self.refused: list[tuple[Any, Any]] = []

    async def open(self, url: str, key: str = FEW) -> int:
        """The status of a long stream, which then stays."""
        body = chat(unique_text(), stream=True, ignore_eos=True, max_tokens=3000)
        headers = {"authorization": f"Bearer {key}"}
        response = await self._http.post(url + CHAT, json=body, headers=headers)
        self._stack.callback(response.close)
        if response.status == 200:
            await response.content.readany()
        else:
            self.refused.append((await response.json(), response.headers))
        return response.status


@pytest.fixture
async def streams(http: aiohttp.ClientSession) -> AsyncIterator[Streams]:
    """Closed before the fleet is looked at."""
    async with contextlib.AsyncExitStack() as stack:
        yield Streams(http, stack)


async def test_requests_at_once_over_the_fleet(
    fleet: Stack, streams: Streams, http: aiohttp.ClientSession
) -> None:
    urls = fleet.router_urls
    statuses = await asyncio.gather(*(streams.open(urls[number % 2]) for number in range(10)))
    assert Counter(statuses) == {200: AT_ONCE, 429: 10 - AT_ONCE}
    for answer, headers in streams.refused:
        assert error_of(answer)["code"] == "rate_limit_exceeded"
        assert int(headers["retry-after"]) >= 1
    # Other tenants do not notice, and it is not a moment's limit.
    assert (await ask(http, urls[0], ACME, CHAT, chat("hello")))[0] == 200
    # Longer than routers take to set counts right: what is open still counts.
    await asyncio.sleep(2.5)
    assert {await streams.open(url) for url in urls} == {429}
    counts = [await samples(http, url) for url in urls]
    assert sum(count["dualmap_limited_total"] for count in counts) == 12 - AT_ONCE
    assert sum(count["dualmap_limited_in_flight"] for count in counts) == AT_ONCE


async def test_what_ends_makes_room(fleet: Stack, http: aiohttp.ClientSession) -> None:
    for _ in range(4):
        results = await asyncio.gather(
            *(
                ask(http, url, FEW, CHAT, chat(unique_text()))
                for url in (*fleet.router_urls, fleet.router_urls[0])
            )
        )
        assert [status for status, _, _ in results] == [200] * AT_ONCE
        await eventually(lambda: _nothing_inside(fleet))


async def test_a_killed_routers_requests_make_room(fleet: Stack, streams: Streams) -> None:
    first, second = fleet.router_urls
    assert [await streams.open(first) for _ in range(AT_ONCE)] == [200] * AT_ONCE
    assert await streams.open(second) == 429
    await fleet.children["router-1"].kill()

    async def let_in() -> bool:
        return await streams.open(second) == 200

    await eventually(let_in)
    assert [await streams.open(second) for _ in range(AT_ONCE)] == [200] * (AT_ONCE - 1) + [429]


async def test_a_rate_over_the_fleet(fleet: Stack, http: aiohttp.ClientSession) -> None:
    results = [
        await ask(http, fleet.router_urls[number % 2], SLOW, CHAT, chat(unique_text())) for number in range(7)
    ]
    assert [status for status, _, _ in results] == [200] * BURST + [429] * (7 - BURST)
    left = [headers["x-ratelimit-remaining-requests"] for _, _, headers in results]
    assert left == ["3", "2", "1", "0", "0", "0", "0"]
    _, answer, headers = results[-1]
    assert error_of(answer)["code"] == "rate_limit_exceeded"
    assert 15 <= int(headers["retry-after"]) <= 20
    assert headers["x-ratelimit-limit-requests"] == str(BURST)
    # What passes through counts as well.
    assert (await ask(http, fleet.router_urls[0], SLOW, "/tokenize", {"prompt": "a"}))[0] == 429


async def test_without_redis_nothing_fails_and_limits_hold_by_share(
    fleet: Stack, streams: Streams, http: aiohttp.ClientSession
) -> None:
    assert fleet.store is not None
    for url in fleet.router_urls:
        assert (await ask(http, url, FEW, CHAT, chat("hello")))[0] == 200
    fleet.store.kill()
    # Three at once over two routers: one each.
    for url in fleet.router_urls:
        assert [await streams.open(url) for _ in range(3)] == [200, 429, 429]
        assert (await samples(http, url))["dualmap_local_limits_total"] == 3
        assert (await ask(http, url, ACME, CHAT, chat("hello")))[0] == 200
    await fleet.store.restart()

    async def together() -> bool:
        """Once Redis is back there is room for one more."""
        return await streams.open(fleet.router_urls[0]) == 200

    await eventually(together)
    # ... and for no more, once both have told what they have.
    await asyncio.sleep(2.5)
    assert [await streams.open(url) for url in fleet.router_urls] == [429, 429]
