"""Streams whose engine dies go on with another: the client reads one answer, the right one."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import openai
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.engine.canonical import canonical_prompt
from dualmap_sim.engine.text import encode, expected_text, token_ids

from .conftest import MODEL, chat, completion, faults, healed, running, samples, unique_text

TOKENS = 40


@pytest.fixture(scope="module")
def three() -> Iterator[Stack]:
    """One router, three instances: two may die."""
    yield from running(StackOptions(routers=1, workers=3, time_scale=4.0))


@pytest.fixture
async def stack(three: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Stack]:
    """The same, whole again and at rest after each test."""
    async with healed(three, http) as stack:
        yield stack


async def die(stack: Stack, http: aiohttp.ClientSession, engines: int, after: int = 7) -> None:
    """The next request that each of the first so many engines gets ends after some tokens."""
    for url in stack.engine_urls[:engines]:
        await faults(http, url, die_after_tokens=after, times=1)


async def events(
    stack: Stack, http: aiohttp.ClientSession, path: str, body: Any, **headers: str
) -> list[Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {**body, "stream": True, "ignore_eos": True}
    async with http.post(f"{stack.router_urls[0]}{path}", json=body, headers=named) as response:
        assert response.status == 200
        raw = await response.read()
    found = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


def text_of(found: list[Any]) -> str:
    choices = [event["choices"][0] for event in found if isinstance(event, dict) and event.get("choices")]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def resumed(stack: Stack, http: aiohttp.ClientSession) -> float:
    return (await samples(http, stack.router_urls[0]))["dualmap_resumed_streams_total"]


@pytest.mark.parametrize("kind", ["chat", "text", "ids"])
@pytest.mark.parametrize("dying", [3, 2, 1])
async def test_the_rest_comes_from_another(
    stack: Stack, http: aiohttp.ClientSession, kind: str, dying: int
) -> None:
    text = unique_text()
    path, body = "/v1/chat/completions", chat(text, max_tokens=TOKENS)
    if kind != "chat":
        prompt: Any = text if kind == "text" else token_ids(encode(text.encode()))
        path, body = "/v1/completions", {**completion(prompt), "max_tokens": TOKENS}
    body["stream_options"] = {"include_usage": True}
    before = await resumed(stack, http)
    await die(stack, http, dying)
    found = await events(stack, http, path, body)
    assert text_of(found) == expected_text(canonical_prompt(body), TOKENS)
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    assert len({(event["id"], event["created"], event["model"]) for event in chunks}) == 1
    finishes = [c["finish_reason"] for event in chunks for c in event["choices"] if c["finish_reason"]]
    assert finishes == ["length"]
    [usage] = [event["usage"] for event in chunks if event.get("usage")]
    assert usage["completion_tokens"] == TOKENS
    assert usage["prompt_tokens"] == len(encode(canonical_prompt(body))) // 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + TOKENS
    if kind == "chat":
        assert [c["delta"].get("role") for event in chunks for c in event["choices"]].count("assistant") == 1
    # With all three dying once, it took every one of them and one again.
    if dying == 3:
        assert await resumed(stack, http) == before + 3


@pytest.mark.parametrize("kind", ["chat", "text", "ids"])
@pytest.mark.parametrize("asks_usage", [True, False])
async def test_an_engine_that_dies_behind_the_last_token_costs_nothing(
    stack: Stack, http: aiohttp.ClientSession, kind: str, asks_usage: bool
) -> None:
    """No rest is left to ask for: only the end."""
    text = unique_text()
    path, body = "/v1/chat/completions", chat(text, max_tokens=7)
    if kind != "chat":
        prompt: Any = text if kind == "text" else token_ids(encode(text.encode()))
        path, body = "/v1/completions", {**completion(prompt), "max_tokens": 7}
    if asks_usage:
        body["stream_options"] = {"include_usage": True}
    await die(stack, http, 3, after=7)
    found = await events(stack, http, path, body)
    assert text_of(found) == expected_text(canonical_prompt(body), 7)
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    finishes = [c["finish_reason"] for event in chunks for c in event["choices"] if c["finish_reason"]]
    assert finishes == ["length"]
    usages = [event["usage"] for event in chunks if event.get("usage")]
    prompt_tokens = len(encode(canonical_prompt(body))) // 4
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": 7, "total_tokens": prompt_tokens + 7}
    assert usages == ([counts] if asks_usage else [])


async def test_engines_that_die_one_after_another_do_not_end_an_answer(
    stack: Stack, http: aiohttp.ClientSession
) -> None:
    """As in a restart of all of them, which a long answer meets again and again: each brought it some way."""
    body = chat(unique_text(), max_tokens=100)
    before = await resumed(stack, http)
    for url in stack.engine_urls:
        await faults(http, url, die_after_tokens=12, times=2)
    found = await events(stack, http, "/v1/chat/completions", body)
    assert text_of(found) == expected_text(canonical_prompt(body), 100)
    assert await resumed(stack, http) == before + 6


async def test_the_official_client_notices_nothing(stack: Stack, http: aiohttp.ClientSession) -> None:
    await die(stack, http, 3)
    messages: Any = [{"role": "user", "content": unique_text()}]
    base_url = f"{stack.router_urls[0]}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as api:
        stream = await api.chat.completions.create(
            model=MODEL,
            messages=messages,
            max_tokens=TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text = "".join([piece.choices[0].delta.content or "" async for piece in stream])
    assert text == expected_text(canonical_prompt({"messages": messages}), TOKENS)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({}, {"x_dualmap_resume": "off"}),
        ({"n": 2}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
            {},
        ),
    ],
)
async def test_what_cannot_go_on_ends_with_an_error(
    stack: Stack, http: aiohttp.ClientSession, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    await die(stack, http, 3, after=1)
    found = await events(
        stack, http, "/v1/chat/completions", {**chat(unique_text(), max_tokens=TOKENS), **fields}, **headers
    )
    assert found[-1]["error"]["code"] == "answer_interrupted"


async def test_nobody_left_to_go_on_with(stack: Stack, http: aiohttp.ClientSession) -> None:
    for url in stack.engine_urls:
        await faults(http, url, die_after_tokens=3)
    found = await events(stack, http, "/v1/chat/completions", chat(unique_text(), max_tokens=TOKENS))
    # Each try brings it further, until the router gives up.
    assert found[-1]["error"]["code"] == "answer_interrupted"
    assert len(text_of(found)) >= 12
