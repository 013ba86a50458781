"""What Redis says that an instance holds is what real vLLM has cached, as its own events tell an auditor."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace

import aiohttp
import pytest
from redis.asyncio import Redis

from dualmap_cli.stack import Stack, StackOptions

from ..kv_audit import Audit, audit, tokenize
from ..link import Link
from ..waiting import eventually
from .conftest import MODEL, OPTIONS

_RUN = time.time_ns()
"""What an engine cached before its worker came, its worker cannot know: no other run or test begins like this."""
pytestmark = pytest.mark.timeout(300)


def texts(test: str, seed: int, count: int, num_chars: int) -> list[str]:
    """Prompts that share how they begin; the tiny tokenizer makes about one token of a random letter."""
    rng = random.Random(seed)
    system = "the quick brown fox jumps over the lazy dog " * 160
    return [
        f"{test} {_RUN} {system}{seed}-{number} " + "".join(rng.choices("abcdefgh", k=num_chars))
        for number in range(count)
    ]


class Auditor:
    """Asks, and remembers what was asked. `replay_urls` are the engines' own."""

    def __init__(self, system: Stack, http: aiohttp.ClientSession, replay_urls: Sequence[str]) -> None:
        self._system = system
        self._http = http
        self._replay_urls = replay_urls
        self._prompts: dict[str, list[int]] = {}

    async def ask(self, prompts: Sequence[str], policy: str = "dualmap") -> None:
        """All of them at once, by both routers."""
        await asyncio.gather(*(self._ask(number, prompt, policy) for number, prompt in enumerate(prompts)))

    async def _ask(self, number: int, prompt: str, policy: str) -> None:
        url = self._system.router_urls[number % 2]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "ignore_eos": True}
        headers = {"x-dualmap-policy": policy}
        async with self._http.post(f"{url}/v1/completions", json=body, headers=headers) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()
        self._prompts[prompt] = await tokenize(self._http, self._system.engine_urls[0], MODEL, prompt)

    async def agree(self) -> list[Audit]:
        """The audits of all instances, once they agree."""
        found: list[Audit] = []

        async def all_agree() -> bool:
            found.clear()
            for index, replay_url in enumerate(self._replay_urls):
                found.append(
                    await audit(redis, OPTIONS.pool, f"worker-{index + 1}", replay_url, self._prompts)
                )
            return all(one.agrees for one in found)

        async with Redis.from_url(self._system.redis_url) as redis:
            try:
                await eventually(all_agree, timeout_s=20)
            except AssertionError:
                raise AssertionError("; ".join(map(str, found))) from None
        return found


async def test_ownership_follows_the_cache_through_load_and_evictions(
    own_system: Stack, http: aiohttp.ClientSession, kv_urls: list[tuple[str, str]]
) -> None:
    auditor = Auditor(own_system, http, [replay_url for _, replay_url in kv_urls])
    await auditor.ask(texts("load", 1, 6, 1200))
    first = await auditor.agree()
    assert sum(len(one.owned) for one in first) > 6
    # More than the three caches hold.
    for seed in (2, 3, 4):
        await auditor.ask(texts("load", seed, 10, 2400))
    after = await auditor.agree()
    gone = frozenset[bytes]().union(*(one.owned for one in first)).difference(*(one.owned for one in after))
    assert gone, "nothing was evicted: the test shows nothing"


async def test_ownership_is_true_again_after_a_lost_subscription(
    options: StackOptions, http: aiohttp.ClientSession, kv_urls: list[tuple[str, str]]
) -> None:
    links = [Link(url) for urls in kv_urls for url in urls]
    ways = [await link.open() for link in links]
    cut_off = {url: (ways[2 * index], ways[2 * index + 1]) for index, url in enumerate(options.engine_urls)}
    async with Stack(replace(options, kv_urls=cut_off)) as stack:
        auditor = Auditor(stack, http, [replay_url for _, replay_url in kv_urls])
        await auditor.ask(texts("cut", 5, 4, 1200))
        await auditor.agree()
        for link in links:
            link.cut()
        # Evenly: a cache that turns over while nothing is heard of it is believed to have lost what it holds.
        await auditor.ask(texts("cut", 6, 12, 2400), policy="round-robin")
        for link in links:
            link.mend()
        await auditor.ask(texts("cut", 7, 4, 1200))
        await auditor.agree()
    for link in links:
        await link.close()
