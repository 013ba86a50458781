"""An adapter that one engine has: whatever names it goes there, whether or not it needs a prefill."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions

from .conftest import MODEL

ADAPTER = "only-here"


@pytest.fixture
async def uneven() -> AsyncIterator[Stack]:
    """Three instances, of which the last has the adapter."""
    async with Stack(StackOptions(routers=1, workers=2, rebalancers=0)) as stack:
        [url] = await stack.start_engines(1, "--lora", ADAPTER)
        await stack.event(stack.start_worker(url), "worker.ready")
        await stack.wait_ready(3)
        yield stack
        left = await settle(stack.redis_url, stack.options.pool, stack.router_urls)
        assert left.clean, left


async def test_every_request_that_names_it_finds_it(uneven: Stack, http: aiohttp.ClientSession) -> None:
    router = uneven.router_urls[0]

    async def ask(path: str, model: str, **body: Any) -> aiohttp.ClientResponse:
        async with http.post(f"{router}{path}", json={"model": model, **body}) as answer:
            assert answer.status == 200, await answer.text()
            return answer

    bases = set()
    for number in range(12):
        await ask("/tokenize", ADAPTER, prompt=f"text {number}")
        given = await ask("/v1/completions", ADAPTER, prompt=f"text {number}", max_tokens=1)
        assert given.headers["x-dualmap-instance"] == "worker-3"
        given = await ask("/v1/completions", MODEL, prompt=f"text {number}", max_tokens=1)
        bases.add(given.headers["x-dualmap-instance"])
    assert len(bases) > 1


async def test_base_and_adapter_share_no_prefix_key(uneven: Stack, http: aiohttp.ClientSession) -> None:
    keys = []
    for model in (MODEL, ADAPTER):
        body = {"model": model, "prompt": "the same text " * 400}
        async with http.post(f"{uneven.router_urls[0]}/debug/explain", json=body) as answer:
            keys.append((await answer.json())["prompt"]["key"])
    assert keys[0] != keys[1]
