"""What vLLM adds to OpenAI's chats and completions arrives as vLLM says it."""

import json
from typing import Any
from uuid import uuid4

import pytest

from .asking import Ask
from .conftest import MODEL

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "what is the weather like in Oslo?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
NAMED = {"type": "function", "function": {"name": "weather"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "temperature": 0, **fields}


def text(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [NAMED, "required", "auto", "none"], ids=str)
async def test_tools(ask: Ask, choice: Any, stream: bool) -> None:
    reply = await ask.same(CHAT, chat(tools=TOOLS, tool_choice=choice, stream=stream))
    assert reply.status == 200
    if choice in (NAMED, "required") and not stream:
        calls = reply.json["choices"][0]["message"]["tool_calls"]
        assert {call["function"]["name"] for call in calls} == {"weather"}


async def test_a_conversation_with_a_tools_answer(ask: Ask) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert (await ask.same(CHAT, chat(messages=messages, tools=TOOLS, max_tokens=8))).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": JSON_SCHEMA},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}},
    ],
    ids=str,
)
async def test_structured_output(ask: Ask, asked: dict[str, Any], stream: bool) -> None:
    reply = await ask.same(CHAT, chat(**asked, stream=stream))
    assert reply.status == 200
    if asked.get("response_format") == JSON_SCHEMA and not stream:
        assert json.loads(reply.json["choices"][0]["message"]["content"])["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        text("hello", return_token_ids=True),
        text("hello", logprobs=3),
        text("hello", echo=True, logprobs=1),
        text([5, 6, 7] * 50),
        text([[5, 6, 7], [8, 9]]),
        text(["one prompt", "and another", "and a third"], return_token_ids=True),
        text("hello", n=3, temperature=0.9, seed=7),
        text(["a", "b"], n=2, temperature=0.9, seed=7),
        text("hello", stop=["a", "e", "t"], include_stop_str_in_output=True, max_tokens=60),
        text("hello", min_tokens=3, skip_special_tokens=False, logit_bias={"40": 100.0}),
    ],
    ids=lambda body: ",".join(name for name in body if name not in ("model", "max_tokens", "temperature")),
)
async def test_completions(ask: Ask, body: dict[str, Any], stream: bool) -> None:
    more = {"stream": True, "stream_options": USAGE} if stream else {}
    reply = await ask.same(TEXT, body | more)
    assert reply.status == 200
    if stream:
        assert all(event["usage"] for event in reply.events)


async def test_log_probabilities_of_the_prompt(ask: Ask) -> None:
    reply = await ask.same(TEXT, text("hello there", prompt_logprobs=2))
    assert len(reply.json["choices"][0]["prompt_logprobs"]) > 3
    reply = await ask.same(CHAT, chat(prompt_logprobs=1, logprobs=True, top_logprobs=2, max_tokens=4))
    assert len(reply.json["prompt_logprobs"]) > 3


@pytest.mark.parametrize("stream", [False, True])
async def test_chats_with_token_ids_and_several_choices(ask: Ask, stream: bool) -> None:
    body = chat(max_tokens=5, n=2, temperature=0.9, seed=3, return_token_ids=True, stream=stream)
    reply = await ask.same(CHAT, body)
    said = reply.events[0] if stream else reply.json
    assert len(said["prompt_token_ids"]) > 10


async def test_usage_is_as_the_stream_options_say(ask: Ask) -> None:
    def with_usage(events: list[Any]) -> list[bool]:
        return [event.get("usage") is not None for event in events]

    silent = await ask.routed(CHAT, chat(max_tokens=5, stream=True))
    assert not any(with_usage(silent.events))
    for options in ({"include_usage": True}, {"include_usage": False}, USAGE):
        body = chat(max_tokens=5, stream=True, stream_options=options)
        routed, direct = await ask.routed(CHAT, body), await ask.direct(CHAT, body)
        assert set(with_usage(routed.events)) == set(with_usage(direct.events))
        assert with_usage(routed.events)[-1] == with_usage(direct.events)[-1]


@pytest.mark.parametrize("how", [{"priority": 5}, {"priority": -5}, {"priority": 2**40}], ids=str)
async def test_a_priority_in_the_body(ask: Ask, how: dict[str, Any]) -> None:
    """This vLLM serves first come, first served: what it makes of a priority is its own affair."""
    await ask.same(CHAT, chat(max_tokens=3, **how))


async def test_two_salts_never_share_cache(ask: Ask) -> None:
    # More than a chunk: of less nobody writes down who holds it, and either candidate may get it again.
    long = uuid4().hex + "a salted prompt that fills many blocks of cache " * 80

    async def cached(salt: str) -> int:
        reply = await ask.routed(TEXT, text(long, cache_salt=salt))
        return int(reply.json["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [await cached("one"), await cached("two")] == [0, 0]
    assert await cached("one") > 400
    assert await cached("two") > 400
