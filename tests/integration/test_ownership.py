"""What Redis says an instance holds is what its engine has cached, whatever happened in between."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import pytest
from redis.asyncio import Redis

from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.engine import EngineHost, EngineSpec, named_profile, start_engines

from ..kv_audit import Audit, audit, tokenize
from ..link import Link
from ..waiting import eventually
from .conftest import MODEL, leftovers

pytestmark = pytest.mark.timeout(180)


@dataclass
class Fleet:
    """Two engines in this process behind two workers, and every prompt that was asked for."""

    host: EngineHost
    stack: Stack
    http: aiohttp.ClientSession
    redis: Redis
    links: list[Link]
    prompts: dict[str, list[int]] = field(default_factory=dict)

    async def ask(self, prompts: Sequence[str]) -> list[int]:
        """Ask for all of them at once; returns their cached tokens."""
        return list(await asyncio.gather(*(self._ask(number, text) for number, text in enumerate(prompts))))

    async def _ask(self, number: int, prompt: str) -> int:
        url = self.stack.router_urls[number % 2]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4}
        async with self.http.post(f"{url}/v1/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            usage = (await reply.json())["usage"]
        if prompt not in self.prompts:
            self.prompts[prompt] = await tokenize(self.http, self.host.addresses[0].url, MODEL, prompt)
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    async def audits(self) -> list[Audit]:
        found = []
        for index, address in enumerate(self.host.addresses):
            assert address.kv_replay is not None
            name = f"worker-{index + 1}"
            found.append(
                await audit(self.redis, self.stack.options.pool, name, address.kv_replay, self.prompts)
            )
        return found

    async def agree(self) -> list[Audit]:
        """The audits once they agree, and every request is forgotten."""
        assert (await leftovers(self.stack)).clean
        found: list[Audit] = []

        async def all_agree() -> bool:
            found[:] = await self.audits()
            return all(one.agrees for one in found)

        try:
            await eventually(all_agree)
        except AssertionError:
            raise AssertionError("; ".join(map(str, found))) from None
        return found


@pytest.fixture
async def fleet(http: aiohttp.ClientSession) -> AsyncIterator[Fleet]:
    profile = named_profile("fast").override(num_kv_blocks=1200)
    async with await start_engines([EngineSpec(profile), EngineSpec(profile)]) as host:
        links = [
            Link(str(url)) for address in host.addresses for url in (address.kv_events, address.kv_replay)
        ]
        urls = [await link.open() for link in links]
        kv_urls = {address.url: (urls[2 * i], urls[2 * i + 1]) for i, address in enumerate(host.addresses)}
        options = StackOptions(
            routers=2, engine_urls=[address.url for address in host.addresses], kv_urls=kv_urls, pool="kv"
        )
        async with Stack(options) as stack, Redis.from_url(stack.redis_url) as redis:
            yield Fleet(host, stack, http, redis, links)
        for link in links:
            await link.close()


def conversations(seed: int, count: int, turns: int = 3) -> list[list[str]]:
    """Per turn, the prompt of each conversation: all share a system prompt, each keeps what it had said."""
    rng = random.Random(seed)
    system = "You are a careful assistant. " * 200
    said = [f"{system} conversation {seed}-{number} " for number in range(count)]
    prompts = []
    for _ in range(turns):
        said = [text + "".join(rng.choices("abcdefgh ", k=rng.randint(2000, 6000))) for text in said]
        prompts.append(list(said))
    return prompts


async def test_after_load_and_after_evictions_it_is_what_is_cached(fleet: Fleet) -> None:
    for turn in conversations(1, 3):
        await fleet.ask(turn)
        await fleet.agree()
    first = await fleet.agree()
    assert sum(len(one.owned) for one in first) > 15
    # More than both caches hold: most of the first conversations are evicted.
    for turn in conversations(2, 12):
        await fleet.ask(turn)
    after = await fleet.agree()
    gone = set().union(*(one.owned for one in first)) - set().union(*(one.owned for one in after))
    assert gone, "nothing was evicted: the test shows nothing"
    assert all(one.owned for one in after)


async def test_after_a_cleared_cache_it_is_nothing(fleet: Fleet) -> None:
    await fleet.ask(conversations(1, 3, turns=1)[0])
    await fleet.agree()
    for address in fleet.host.addresses:
        async with fleet.http.post(f"{address.url}/admin/reset_cache") as reply:
            assert reply.status == 200
    assert [len(one.owned) for one in await fleet.agree()] == [0, 0]


@pytest.mark.parametrize("which", ["events", "replay", "both"])
async def test_after_a_lost_connection_it_is_what_is_cached(fleet: Fleet, which: str) -> None:
    first, second, third = conversations(1, 6)
    await fleet.ask(first)
    await fleet.agree()
    cut = {"events": fleet.links[::2], "replay": fleet.links[1::2], "both": fleet.links}[which]
    for link in cut:
        link.cut()
    await fleet.ask(second)
    for link in cut:
        link.mend()
    await fleet.ask(third)
    await fleet.agree()


async def test_after_an_engine_began_anew_it_is_what_the_new_one_has(fleet: Fleet) -> None:
    first, second = conversations(1, 6, turns=2)
    await fleet.ask(first)
    await fleet.agree()
    generation = await fleet.redis.hget("dm:{kv}:generations", "worker-1")
    await fleet.host.restart(0)

    async def noticed() -> bool:
        return bool(await fleet.redis.hget("dm:{kv}:generations", "worker-1") != generation)

    await eventually(noticed)
    emptied, _ = await fleet.agree()
    assert emptied.owned == frozenset()
    await fleet.ask(second)
    await fleet.agree()


async def test_after_redis_lost_everything_it_is_written_again(fleet: Fleet) -> None:
    await fleet.ask(conversations(1, 4, turns=1)[0])
    before = [one.owned for one in await fleet.agree()]
    await fleet.redis.flushall()
    assert [one.owned for one in await fleet.agree()] == before


async def test_requests_that_come_to_nothing_leave_nothing(fleet: Fleet) -> None:
    await fleet.ask(["x" * 9000])
    await fleet.agree()
    body = {"model": MODEL, "prompt": "refused " * 3000, "max_tokens": -1}
    async with fleet.http.post(f"{fleet.stack.router_urls[0]}/v1/completions", json=body) as reply:
        assert reply.status == 400
    # Too short a wait for its answer: gone while it is prefilled, or before.
    body = {"model": MODEL, "prompt": "left alone " * 8000, "max_tokens": 4}
    leaving: Callable[[], object] = lambda: fleet.http.post(  # noqa: E731
        f"{fleet.stack.router_urls[0]}/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=0.02)
    )
    with contextlib.suppress(TimeoutError):
        await leaving()  # type: ignore[misc]
    fleet.prompts[str(body["prompt"])] = await tokenize(
        fleet.http, fleet.host.addresses[0].url, MODEL, str(body["prompt"])
    )
    await fleet.agree()
