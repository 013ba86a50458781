"""vLLM's other endpoints, and its errors, arrive as vLLM gives them."""

from typing import Any

import pytest

from .asking import Ask
from .conftest import ADAPTER, MODEL

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "hello there"}]
LONG = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 60}]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5C"
    "YII="
)
IMAGE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": PIXEL}},
        ],
    }
]


def anthropic(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": LONG, "max_tokens": 12, "temperature": 0, **fields}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "given", ["hello there", [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]], ids=str
)
async def test_responses(ask: Ask, given: Any, stream: bool) -> None:
    body = {"model": MODEL, "input": given, "instructions": "be brief", "max_output_tokens": 12}
    reply = await ask.same(RESPONSES, body | {"temperature": 0, "stream": stream})
    assert reply.status == 200
    if stream:
        assert reply.events[0]["type"] == "response.created"
        assert reply.events[-1]["type"] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_messages(ask: Ask, stream: bool) -> None:
    reply = await ask.same(MESSAGES, anthropic(system="be brief", stream=stream))
    assert reply.status == 200
    if stream:
        assert "event: message_start\n" in reply.text
        assert reply.events[-1] == {"type": "message_stop"}


async def test_a_cached_message_is_no_shorter_to_the_router(ask: Ask) -> None:
    """Anthropic's input_tokens leave out what was cached: the pool's bytes per token must not follow them."""

    async def counted() -> float:
        text = (await ask.routed("/metrics")).text + (await ask.routed("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("dualmap_prompt_tokens_total ")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    await ask.routed(MESSAGES, anthropic())
    before = await counted()
    usage = (await ask.routed(MESSAGES, anthropic())).json["usage"]
    assert usage["cache_read_input_tokens"] > usage["input_tokens"]
    whole = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert await counted() - before == whole


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": MODEL, "prompt": "hello there", "return_token_strs": True}),
        ("/tokenize", {"model": ADAPTER, "messages": USER}),
        ("/detokenize", {"model": MODEL, "tokens": [80, 81, 82]}),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": LONG}),
        ("/version", None),
    ],
)
async def test_what_needs_no_prefill(ask: Ask, path: str, body: Any) -> None:
    assert (await ask.same(path, body)).status == 200


async def test_the_names_that_are_served(ask: Ask) -> None:
    ours = {card["id"]: card["parent"] for card in (await ask.routed("/v1/models")).json["data"]}
    theirs = {card["id"]: card["parent"] for card in (await ask.direct("/v1/models")).json["data"]}
    assert ours == theirs == {MODEL: None, ADAPTER: MODEL}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": MODEL, "messages": IMAGE}, 400),
        (CHAT, {"model": MODEL, "messages": USER, "max_tokens": -4}, 400),
        (CHAT, {"model": MODEL, "messages": USER, "temperature": "hot"}, 400),
        (CHAT, {"model": MODEL, "messages": USER, "response_format": {"type": "json_schema"}}, 400),
        (CHAT, {"model": MODEL, "messages": USER, "stream": True, "top_logprobs": 5000}, 400),
        (TEXT, {"model": MODEL, "prompt": [5] * 5000, "max_tokens": 4}, 400),
        (TEXT, {"model": MODEL, "prompt": [5] * 5000, "stream": True}, 400),
        (TEXT, {"model": MODEL, "prompt": [100_000]}, 400),
        (TEXT, {"model": MODEL, "prompt_embeds": "AAAA"}, 400),
        (RESPONSES, {"model": MODEL, "input": "a", "previous_response_id": "resp_unknown"}, 404),
        (MESSAGES, {"model": MODEL, "messages": USER, "max_tokens": 0}, 400),
        ("/v1/embeddings", {"model": MODEL, "input": "hello"}, 404),
        ("/v1/score", {"model": MODEL, "text_1": "a", "text_2": "b"}, 404),
        ("/v1/nothing/of/the/kind", {}, 404),
        ("/v1/nothing/of/the/kind", None, 404),
        ("/tokenize", {"model": "nobody", "prompt": "a"}, 404),
        ("/detokenize", b"{", 400),
        (f"{CHAT}/render", {"model": MODEL, "messages": USER}, 403),
    ],
)
async def test_vllms_own_errors(ask: Ask, path: str, body: Any, status: int) -> None:
    assert (await ask.same(path, body)).status == status


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (CHAT, {"model": "nobody", "messages": USER}, 404, "model_not_found"),
        (TEXT, {"model": "nobody", "prompt": "a"}, 404, "model_not_found"),
        (CHAT, b'{"model": "tiny", "messages": [', 400, "invalid_json"),
        (TEXT, b"\xff\xfe", 400, "invalid_json"),
        ("/nothing", None, 404, "not_found"),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/a"}, 404, "not_found"),
        ("/sleep", {}, 404, "not_found"),
    ],
)
async def test_what_the_router_says_itself(ask: Ask, path: str, body: Any, status: int, code: str) -> None:
    reply = await ask.routed(path, body)
    assert reply.status == status
    assert reply.json["error"]["code"] == code
    assert reply.json["error"]["message"]
