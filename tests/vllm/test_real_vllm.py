"""The main job in front of real vLLM, with OpenAI's own client: answers, usage, caching, load."""

import asyncio
from typing import Any

import openai

from dualmap_cli.stack import Stack

from .conftest import MODEL

LONG = "the quick brown fox jumps over the lazy dog " * 120


def client(system: Stack, router: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{system.router_urls[router]}/v1", api_key="none", max_retries=0)


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


async def test_many_at_once_are_spread_and_answered(own_system: Stack) -> None:
    """On workers that know nothing of their engines: one whose first log probabilities took seconds is avoided."""

    async def ask(number: int) -> str:
        async with client(own_system, number % 2) as api:
            raw = await api.completions.with_raw_response.create(
                model=MODEL, prompt=f"{number} " + LONG, max_tokens=4, extra_body={"ignore_eos": True}
            )
        usage = raw.parse().usage
        assert usage is not None
        assert usage.completion_tokens == 4
        return str(raw.headers["x-dualmap-instance"])

    instances = await asyncio.gather(*(ask(number) for number in range(24)))
    assert set(instances) == {"worker-1", "worker-2", "worker-3"}
