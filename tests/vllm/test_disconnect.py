"""A client that leaves stops vLLM, whatever its request has come to."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from dualmap_cli.stack import Stack

from ..waiting import eventually
from .conftest import MODEL
from .gauges import gauge, running

STOPS_WITHIN_S = 0.2
NUM_TRIES = 5


@pytest.mark.parametrize("stream", [True, False])
async def test_it_stops_generating(
    system: Stack, http: aiohttp.ClientSession, stream: bool, record_property: Any
) -> None:
    """The median of a few, since any one of them may meet a busy machine."""
    engines = system.engine_urls

    async def is_running() -> bool:
        return await running(http, engines) == 1

    stopped_s = []
    for number in range(NUM_TRIES):
        url = f"{system.router_urls[number % 2]}/v1/completions"
        body = {"model": MODEL, "prompt": f"hello {number}", "max_tokens": 3900, "ignore_eos": True}
        async with aiohttp.ClientSession() as client:
            post = asyncio.create_task(client.post(url, json=body | {"stream": stream}))
            await eventually(is_running)
            left_s = time.monotonic()
            if stream:
                (await post).close()
            else:
                post.cancel()
            while await running(http, engines):
                assert time.monotonic() < left_s + 5
            stopped_s.append(time.monotonic() - left_s)
    made = [await gauge(http, url, "generation_tokens_total") for url in engines]
    await asyncio.sleep(0.1)
    assert made == [await gauge(http, url, "generation_tokens_total") for url in engines]
    record_property("stopped_ms", [round(each * 1e3) for each in stopped_s])
    assert sorted(stopped_s)[NUM_TRIES // 2] < STOPS_WITHIN_S, stopped_s


async def test_it_stops_in_the_middle_of_a_prefill(system: Stack, http: aiohttp.ClientSession) -> None:
    """vLLM ends the step that it is in, and then generates nothing."""
    engines = system.engine_urls

    async def generated() -> float:
        return sum([await gauge(http, url, "generation_tokens_total") for url in engines])

    before = await generated()
    body = {"model": MODEL, "prompt": [5, 6, 7, 8] * 1000, "max_tokens": 90, "ignore_eos": True}
    async with aiohttp.ClientSession() as client:
        salted = body | {"stream": True, "cache_salt": uuid4().hex}
        post = asyncio.create_task(client.post(f"{system.router_urls[0]}/v1/completions", json=salted))
        # Long enough to be in the engine, and far too short for 4,000 tokens.
        await asyncio.sleep(0.1)
        assert not post.done()
        post.cancel()
    # A whole answer would take half a second.
    await asyncio.sleep(3.0)
    assert await running(http, engines) == 0
    assert await generated() - before < 10
