"""The official client through a router: nothing about it has to change."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from dualmap_cli.stack import Stack
from dualmap_sim.engine.canonical import answers, chat_prompt
from dualmap_sim.engine.text import expected_text

from .conftest import MODEL, unique_text

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture
def client(system: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{system.router_urls[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(system: Stack) -> AsyncIterator[AsyncOpenAI]:
    url = f"{system.router_urls[1]}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(text: str) -> list[Any]:
    return [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]


def test_chat(client: OpenAI) -> None:
    messages = ask(unique_text())
    got = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    text = got.choices[0].message.content
    assert text == expected_text(chat_prompt(messages), 8)
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.completion_tokens == 8
    assert got.model == MODEL


async def test_chat_async(async_client: AsyncOpenAI) -> None:
    messages = ask(unique_text())
    got = await async_client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert got.choices[0].message.content == expected_text(chat_prompt(messages), 8)


def test_chat_stream(client: OpenAI) -> None:
    messages = ask(unique_text())
    with client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, stream=True) as chunks:
        seen = list(chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in seen)
    assert text == expected_text(chat_prompt(messages), 12)
    assert len(seen) >= 12
    assert seen[-1].choices[0].finish_reason == "length"
    # Not asked for: the worker asks the engine for usage, and the client never sees that.
    assert all(chunk.usage is None and chunk.choices for chunk in seen)


async def test_chat_stream_async_with_usage(async_client: AsyncOpenAI) -> None:
    messages = ask(unique_text())
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    async with stream:
        seen = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in seen for choice in chunk.choices)
    assert text == expected_text(chat_prompt(messages), 12)
    assert [chunk.usage for chunk in seen[:-1]] == [None] * (len(seen) - 1)
    usage = seen[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, seen[-1].choices) == (12, [])


def test_usage_refused_by_name_stays_hidden(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ask(unique_text()),
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": False},
    )
    with stream:
        assert all(chunk.usage is None and chunk.choices for chunk in stream)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client: OpenAI, stream: bool) -> None:
    arguments: dict[str, Any] = {
        "model": MODEL, "messages": ask(unique_text()), "tools": TOOLS, "tool_choice": "required",
    }  # fmt: skip
    if stream:
        with client.chat.completions.create(**arguments, stream=True) as chunks:
            deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        name = next(call.function.name for call in calls if call.function.name)
        said = "".join(call.function.arguments or "" for call in calls)
    else:
        got = client.chat.completions.create(**arguments)
        assert got.choices[0].finish_reason == "tool_calls"
        call = got.choices[0].message.tool_calls[0]
        name, said = call.function.name, call.function.arguments
    assert (name, said) == ("get_weather", '{"city": "simulated"}')


def test_a_tool_result_goes_back(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        *ask(unique_text()),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    got = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=4)
    body = {"messages": messages, "tools": TOOLS}
    assert answers(body, got.choices[0].message.content or "")


def test_parts_of_content(client: OpenAI) -> None:
    parts = [{"type": "text", "text": unique_text()}, {"type": "text", "text": "and this"}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    got = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    assert answers({"messages": messages}, got.choices[0].message.content or "")


def test_several_choices(client: OpenAI) -> None:
    messages = ask(unique_text())
    got = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4, n=3)
    assert [c.message.content for c in got.choices] == [
        expected_text(chat_prompt(messages), 4, choice) for choice in range(3)
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["text", "ids"])
def test_completions(client: OpenAI, prompt: str, stream: bool) -> None:
    text = unique_text(400)
    data = text.encode() + b" " * (-len(text) % 4)
    ids = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    given: Any = data.decode() if prompt == "text" else ids
    if stream:
        with client.completions.create(model=MODEL, prompt=given, max_tokens=6, stream=True) as chunks:
            said = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    else:
        said = client.completions.create(model=MODEL, prompt=given, max_tokens=6).choices[0].text
    assert said == expected_text(data, 6)


def test_embeddings(client: OpenAI) -> None:
    texts = [unique_text(), unique_text()]
    got = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert len(got.data) == 2
    assert got.data[0].embedding != got.data[1].embedding
    again = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float")
    assert again.data[0].embedding == got.data[0].embedding


async def test_responses(async_client: AsyncOpenAI) -> None:
    got = await async_client.responses.create(model=MODEL, input=unique_text(), max_output_tokens=16)
    assert got.output_text
    stream = await async_client.responses.create(
        model=MODEL, input=unique_text(), max_output_tokens=16, stream=True
    )
    async with stream:
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


async def test_models_async(async_client: AsyncOpenAI) -> None:
    assert [model.id async for model in async_client.models.list()] == [MODEL]


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-none", messages=ask("hi"))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_bad_requests_are_bad_requests(async_client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await async_client.chat.completions.create(model=MODEL, messages=[])
    assert caught.value.param == "messages"
    # What only the engine can judge comes back as the engine said it.
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
        await async_client.chat.completions.create(model=MODEL, messages=ask("hi"), max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await async_client.completions.create(model=MODEL, prompt="word " * 200_000, max_tokens=1)


async def test_a_bad_request_for_a_stream_raises_too(async_client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be non-negative"):
        await async_client.chat.completions.create(
            model=MODEL, messages=ask("hi"), temperature=-1, stream=True
        )
