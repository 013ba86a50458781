"""The generating endpoints, as the real OpenAI client sees them."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from dualmap_sim.engine import EngineHost, answers, canonical_prompt, expected_text
from dualmap_sim.engine.text import encode, token_ids
from tests.sim.engine.conditions import NOTHING_LEFT, wait_for_stats

USER: Any = [{"role": "user", "content": "tell me " * 40}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C"]}},
            "required": ["city", "days", "unit"],
        },
    },
}


async def events(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> list[Any]:
    async with http.post(path, json={**body, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"
        lines = (await reply.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_chat_is_answered_and_counted(client: AsyncOpenAI) -> None:
    for cached in (0, 80):
        reply = await client.chat.completions.create(model="sim-model", messages=USER, max_tokens=9)
        assert reply.choices[0].message.content == expected_text(canonical_prompt({"messages": USER}), 9)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 9
        assert reply.usage.prompt_tokens_details is not None
        assert reply.usage.prompt_tokens_details.cached_tokens == cached


async def test_a_chat_without_a_limit_ends_by_itself(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="sim-model", messages=USER)
    text = expected_text(canonical_prompt({"messages": USER}))
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(text) // 4 + 1


async def test_the_blocking_client_works_too(url: str) -> None:
    def ask() -> str:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            assert [card.id for card in client.models.list()] == ["sim-model", "sim-lora"]
            return client.completions.create(model="sim-model", prompt="once", max_tokens=3).choices[0].text

    assert await asyncio.to_thread(ask) == expected_text(b"once", 3)


async def test_a_chat_stream_has_vllms_chunks(http: aiohttp.ClientSession) -> None:
    body = {"messages": USER, "max_tokens": 4, "stream_options": {"include_usage": True}}
    first, *middle, last, usage = await events(http, "/v1/chat/completions", body)
    opening = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert first["choices"] == [opening]
    assert first["object"] == "chat.completion.chunk"
    assert first["prompt_token_ids"] is None
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["stop_reason"] is None
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in [*middle, last])
    assert answers({"messages": USER}, text)
    assert len(text) == 16
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["usage"]["completion_tokens"] == 4
    assert len({chunk["id"] for chunk in [first, *middle, last, usage]}) == 1
    assert all("usage" not in chunk for chunk in [first, *middle, last])


async def test_usage_can_come_with_every_chunk(http: aiohttp.ClientSession) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "count", "max_tokens": 3, "stream_options": options}
    *chunks, last = await events(http, "/v1/completions", body)
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert last["usage"]["total_tokens"] == 5


async def test_token_ids_ride_on_the_first_chunk_and_resume_a_completion(http: aiohttp.ClientSession) -> None:
    body: dict[str, Any] = {"prompt": "odd", "max_tokens": 6, "return_token_ids": True}
    chunks = await events(http, "/v1/completions", body)
    prompt_ids = chunks[0]["choices"][0]["prompt_token_ids"]
    assert prompt_ids == token_ids(encode(b"odd"))
    assert all(chunk["choices"][0]["prompt_token_ids"] is None for chunk in chunks[1:])
    new_ids = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == expected_text(b"odd", 6)
    async with http.post(
        "/v1/completions", json={"prompt": prompt_ids + new_ids[:4], "max_tokens": 2}
    ) as reply:
        assert (await reply.json())["choices"][0]["text"] == text[16:]
    async with http.post("/v1/completions", json={"prompt": "odd" + text[:9], "max_tokens": 2}) as reply:
        assert (await reply.json())["choices"][0]["text"] == text[9:16]


async def test_a_chats_prompt_ids_come_with_its_role(http: aiohttp.ClientSession) -> None:
    chunks = await events(
        http, "/v1/chat/completions", {"messages": USER, "max_tokens": 2, "return_token_ids": True}
    )
    ids = token_ids(encode(canonical_prompt({"messages": USER})))
    assert chunks[0]["prompt_token_ids"] == ids
    async with http.post("/tokenize", json={"messages": USER}) as reply:
        assert (await reply.json())["tokens"] == ids


async def test_a_cut_chat_is_continued_by_its_text(client: AsyncOpenAI) -> None:
    whole = expected_text(canonical_prompt({"messages": USER}), 20)
    reply = await client.chat.completions.create(
        model="sim-model",
        messages=[*USER, {"role": "assistant", "content": whole[:28]}],
        max_tokens=13,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert reply.choices[0].message.content == whole[28:]


async def test_several_choices(client: AsyncOpenAI) -> None:
    prompt = canonical_prompt({"messages": USER})
    reply = await client.chat.completions.create(model="sim-model", messages=USER, max_tokens=5, n=3)
    assert [choice.message.content for choice in reply.choices] == [
        expected_text(prompt, 5, choice) for choice in range(3)
    ]
    stream = await client.chat.completions.create(
        model="sim-model", messages=USER, max_tokens=5, n=2, stream=True
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [expected_text(prompt, 5, choice) for choice in range(2)]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_forced_tool_is_called(client: AsyncOpenAI, choice: Any) -> None:
    finish = "tool_calls" if choice == "required" else "stop"
    request: dict[str, Any] = {"model": "sim-model", "messages": USER, "tools": [TOOL], "tool_choice": choice}
    reply = await client.chat.completions.create(**request)
    calls = reply.choices[0].message.tool_calls
    assert calls is not None
    call: Any = calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "simulated", "days": 1, "unit": "C"}
    assert reply.choices[0].finish_reason == finish
    arguments, reasons = "", []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            arguments += part.function.arguments
        reasons.append(chunk.choices[0].finish_reason)
    assert json.loads(arguments) == json.loads(call.function.arguments)
    assert reasons[-1] == finish


async def test_a_stop_string_ends_the_answer_before_it(http: aiohttp.ClientSession) -> None:
    whole = expected_text(b"halt", 12)
    stop = whole[21:24]
    body = {"prompt": "halt", "max_tokens": 12, "stop": [stop]}
    async with http.post("/v1/completions", json=body) as reply:
        choice = (await reply.json())["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    chunks = await events(http, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


async def test_responses_stream_and_whole_agree(client: AsyncOpenAI) -> None:
    whole = await client.responses.create(model="sim-model", input="hello", max_output_tokens=6)
    assert whole.output_text == expected_text(
        canonical_prompt({"messages": [{"role": "user", "content": "hello"}]}), 6
    )
    text, last = "", ""
    async for event in await client.responses.create(
        model="sim-model", input="hello", max_output_tokens=6, stream=True
    ):
        last = event.type
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text
    assert last == "response.completed"


async def test_adapters_and_salts_have_caches_of_their_own(client: AsyncOpenAI, host: EngineHost) -> None:
    for model, salt in (("sim-model", None), ("sim-lora", None), ("sim-model", "tenant"), ("sim-lora", None)):
        extra = {"cache_salt": salt} if salt else {}
        reply = await client.chat.completions.create(
            model=model, messages=USER, max_tokens=1, extra_body=extra
        )
        assert reply.model == model
    assert host.model_of(0).model.cached_tokens == 80


async def test_the_request_id_is_the_clients(http: aiohttp.ClientSession) -> None:
    for stream in (False, True):
        body = {"prompt": "id", "max_tokens": 1, "stream": stream}
        async with http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine"}) as reply:
            assert reply.headers["X-Request-Id"] == "mine"
            assert '"id":"cmpl-mine"' in await reply.text()
    async with http.get("/health") as reply:
        assert reply.headers["X-Request-Id"]
    assert (await wait_for_stats(http, open=0))["requests"]["mine"] == {
        "started": 2,
        "finished": 2,
        "aborted": 0,
        "failed": 0,
    }


async def test_every_request_of_a_burst_is_answered_once(
    client: AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    async def ask(index: int) -> None:
        prompt = f"{index % 7} " * 100 + str(index)
        reply = await client.completions.create(model="sim-model", prompt=prompt, max_tokens=1 + index % 9)
        assert reply.choices[0].text == expected_text(prompt.encode(), 1 + index % 9)

    await asyncio.gather(*(ask(index) for index in range(60)))
    books = await wait_for_stats(http, open=0)
    assert books["totals"] == {"started": 60, "finished": 60, "aborted": 0, "failed": 0}
    assert books["leftovers"] == NOTHING_LEFT
    assert books["peak_open"] > 1
    assert 0 < books["cached_tokens"] < books["prompt_tokens"]


async def test_a_client_that_goes_away_frees_its_blocks(http: aiohttp.ClientSession) -> None:
    for body in ({"prompt": "bye" * 900, "max_tokens": 50_000, "stream": stream} for stream in (True, False)):
        task = asyncio.create_task(_read_for_ever(http, body))
        await wait_for_stats(http, running=1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        books = await wait_for_stats(http, running=0, waiting=0, open=0, timeout_s=2)
        assert books["leftovers"] == NOTHING_LEFT
    assert books["totals"]["aborted"] == 2


async def _read_for_ever(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    async with http.post("/v1/completions", json=body) as reply:
        async for _ in reply.content:
            pass


async def test_errors_are_the_clients_exceptions(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="other", messages=USER)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.completions.create(model="sim-model", prompt="x" * 4 * 163_840, max_tokens=1)
