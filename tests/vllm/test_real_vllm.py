"""The main job in front of real vLLM: requests, usage, caching, errors, disconnects."""

import asyncio
import time
from typing import Any

import aiohttp
import openai
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack

from .conftest import MODEL

LONG = "the quick brown fox jumps over the lazy dog " * 120


def client(system: Stack, router: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{system.router_urls[router]}/v1", api_key="none", max_retries=0)


async def assert_at_rest(system: Stack) -> None:
    left = await settle(system.redis_url, "vllm", system.router_urls)
    assert left.clean, left


async def test_chat_streamed_and_not_gives_the_same_text(system: Stack) -> None:
    messages: Any = [{"role": "user", "content": LONG + "once"}]
    settings: Any = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0}
    async with client(system) as api:
        whole = await api.chat.completions.create(**settings)
        pieces = [chunk async for chunk in await api.chat.completions.create(**settings, stream=True)]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    )
    # Usage was not asked for: the event that the worker asked for stayed behind.
    assert all(piece.usage is None and piece.choices for piece in pieces)
    await assert_at_rest(system)


async def test_a_prefix_meets_its_cache_through_either_router(system: Stack) -> None:
    cached, instances = [], set()
    for turn in range(6):
        async with client(system, turn % 2) as api:
            raw = await api.completions.with_raw_response.create(
                model=MODEL, prompt=LONG + f" question {turn}", max_tokens=2
            )
        instances.add(raw.headers["x-dualmap-instance"])
        usage = (raw.parse()).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached.append((usage.prompt_tokens_details.cached_tokens or 0) / usage.prompt_tokens)
    assert len(instances) == 1
    assert min(cached[1:]) > 0.9, cached
    await assert_at_rest(system)


async def test_token_ids_tokenize_and_models(system: Stack) -> None:
    async with client(system) as api:
        answer = await api.completions.create(model=MODEL, prompt=[5, 6, 7] * 50, max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 150
        assert [model.id async for model in api.models.list()] == [MODEL]
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{system.router_urls[0]}/tokenize", json={"model": MODEL, "prompt": "hello"}) as response,
    ):
        assert (await response.json())["count"] > 0


async def test_vllms_own_errors_arrive_as_they_are(system: Stack) -> None:
    async with client(system) as api:
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await api.completions.create(model=MODEL, prompt="x", max_tokens=-4)
        with pytest.raises(openai.BadRequestError):
            await api.completions.create(model=MODEL, prompt=[5] * 5000, max_tokens=4)
    await assert_at_rest(system)


async def test_a_client_that_leaves_stops_the_generation(system: Stack, engines: list[str]) -> None:
    async with client(system) as api:
        stream = await api.completions.create(
            model=MODEL, prompt="hello", max_tokens=3500, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
    left_at = time.monotonic()
    while sum([await running(url) for url in engines]):
        assert time.monotonic() - left_at < 5
        await asyncio.sleep(0.02)
    await assert_at_rest(system)


async def running(url: str) -> float:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
        text = await response.text()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("vllm:num_requests_running{")
    )


async def test_many_at_once_are_spread_and_answered(system: Stack) -> None:
    async def ask(number: int) -> str:
        async with client(system, number % 2) as api:
            raw = await api.completions.with_raw_response.create(
                model=MODEL, prompt=f"{number} " + LONG, max_tokens=4, extra_body={"ignore_eos": True}
            )
        usage = raw.parse().usage
        assert usage is not None
        assert usage.completion_tokens == 4
        return str(raw.headers["x-dualmap-instance"])

    instances = await asyncio.gather(*(ask(number) for number in range(24)))
    assert set(instances) == {"worker-1", "worker-2"}
    await assert_at_rest(system)
