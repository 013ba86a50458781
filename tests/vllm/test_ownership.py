"""What Redis says that an instance holds is what real vLLM has cached, as its own events tell an auditor."""

import asyncio
import random
from collections.abc import Sequence

import aiohttp
import pytest
from redis.asyncio import Redis

from dualmap_cli.stack import Stack

from ..kv_audit import Audit, audit, tokenize
from ..waiting import eventually
from .conftest import MODEL, OPTIONS

pytestmark = pytest.mark.timeout(300)


def texts(seed: int, count: int, num_chars: int) -> list[str]:
    """Prompts that share how they begin; the tiny tokenizer makes about one token of a random letter."""
    rng = random.Random(seed)
    system = "the quick brown fox jumps over the lazy dog " * 160
    return [
        f"{system}{seed}-{number} " + "".join(rng.choices("abcdefgh", k=num_chars)) for number in range(count)
    ]


class Auditor:
    """Asks, and remembers what was asked."""

    def __init__(self, system: Stack, http: aiohttp.ClientSession) -> None:
        self._system = system
        self._http = http
        self._prompts: dict[str, list[int]] = {}

    async def ask(self, prompts: Sequence[str]) -> None:
        """All of them at once, by both routers."""
        await asyncio.gather(*(self._ask(number, prompt) for number, prompt in enumerate(prompts)))

    async def _ask(self, number: int, prompt: str) -> None:
        url = self._system.router_urls[number % 2]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "ignore_eos": True}
        async with self._http.post(f"{url}/v1/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()
        self._prompts[prompt] = await tokenize(self._http, self._system.engine_urls[0], MODEL, prompt)

    async def agree(self) -> list[Audit]:
        """The audits of all instances, once they agree."""
        found: list[Audit] = []

        async def all_agree() -> bool:
            found.clear()
            for index, url in enumerate(self._system.engine_urls):
                replay_url = self._system.kv_urls[url][1]
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
    system: Stack, http: aiohttp.ClientSession
) -> None:
    auditor = Auditor(system, http)
    await auditor.ask(texts(1, 6, 1200))
    first = await auditor.agree()
    assert sum(len(one.owned) for one in first) > 6
    # More than the three caches hold.
    for seed in (2, 3, 4):
        await auditor.ask(texts(seed, 10, 2400))
    after = await auditor.agree()
    gone = frozenset[bytes]().union(*(one.owned for one in first)).difference(*(one.owned for one in after))
    assert gone, "nothing was evicted: the test shows nothing"
