"""What vLLM answers with 400 or 404, in its shape."""

from typing import Any

import aiohttp
import pytest

from tests.sim.engine.conditions import NOTHING_LEFT, stats

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f"}}]

CASES: list[tuple[str, Any, int, str | None]] = [
    (CHAT, b"{", 400, "body"),
    (CHAT, b"\xff", 400, "body"),
    (CHAT, b"[1]", 400, "body"),
    (CHAT, b"[" * 100_000, 400, "body"),
    (CHAT, {}, 400, "body.messages"),
    (CHAT, {"messages": "hi"}, 400, "body.messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "body.messages.0.role"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "body.messages.0.content"),
    (CHAT, {"messages": HI, "model": "other"}, 404, "model"),
    (CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens"),
    (CHAT, {"messages": HI, "max_completion_tokens": -1}, 400, "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": "many"}, 400, "body.max_tokens"),
    (CHAT, {"messages": HI, "n": 0}, 400, "n"),
    (CHAT, {"messages": HI, "temperature": -1}, 400, "temperature"),
    (CHAT, {"messages": HI, "top_p": 2}, 400, "top_p"),
    (CHAT, {"messages": HI, "stop": ""}, 400, "stop"),
    (CHAT, {"messages": HI, "cache_salt": ""}, 400, "cache_salt"),
    (CHAT, {"messages": HI, "logprobs": True}, 400, "logprobs"),
    (CHAT, {"messages": HI, "stream_options": {}}, 400, "stream_options"),
    (CHAT, {"messages": HI, "stream": "yes"}, 400, "body.stream"),
    (CHAT, {"messages": HI, "continue_final_message": True}, 400, None),
    (CHAT, {"messages": HI, "tools": []}, 400, "tools"),
    (CHAT, {"messages": HI, "tool_choice": "required"}, 400, "tool_choice"),
    (CHAT, {"messages": HI, "tools": TOOLS, "tool_choice": "maybe"}, 400, "tool_choice"),
    (CHAT, {"messages": HI, "tools": [{}]}, 400, "body.tools.function.name"),
    (CHAT, {"messages": HI, "tools": TOOLS, "tool_choice": {"function": {"name": "g"}}}, 400, "tool_choice"),
    (TEXT, {}, 400, "body.prompt"),
    (TEXT, {"prompt": ""}, 400, "prompt"),
    (TEXT, {"prompt": []}, 400, "prompt"),
    (TEXT, {"prompt": ["a", "b"]}, 400, "prompt"),
    (TEXT, {"prompt": [{}]}, 400, "body.prompt"),
    (TEXT, {"prompt": [1, "b"]}, 400, "prompt"),
    (TEXT, {"prompt": [-1]}, 400, "prompt"),
    (TEXT, {"prompt": [2**32]}, 400, "prompt"),
    (TEXT, {"prompt": [True]}, 400, "prompt"),
    (TEXT, {"prompt": "a", "echo": True}, 400, "echo"),
    (TEXT, {"prompt": "a", "logprobs": 1}, 400, "logprobs"),
    (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    (TEXT, {"prompt": "x" * 4 * 163_840}, 400, "input_tokens"),
    ("/v1/responses", {"input": [{"type": "function_call_output"}]}, 400, "body.input.0"),
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/v1/embeddings", {"input": [[-1]]}, 400, "input"),
    ("/tokenize", {}, 400, "body.prompt"),
    ("/detokenize", {"tokens": [2**40]}, 400, "input"),
    ("/admin/faults", {"no_such": 1}, 400, None),
    ("/admin/faults", {"error_rate": 2}, 400, None),
    ("/v1/nothing", {}, 404, None),
]


async def test_every_bad_request_is_refused_in_vllms_shape(http: aiohttp.ClientSession) -> None:
    for path, body, status, param in CASES:
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        async with http.post(path, **data, headers=headers) as reply:
            case = (path, str(body)[:80])
            assert reply.status == status, (case, await reply.text())
            error = (await reply.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}, case
            assert (error["code"], error["param"]) == (status, param), (case, error)
            assert error["message"]
            assert error["type"] in ("BadRequestError", "Bad Request", "NotFoundError", "Not Found"), case
    after = await stats(http)
    assert after["leftovers"] == NOTHING_LEFT
    assert after["totals"]["started"] == 0


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded"])
async def test_only_json_is_read(http: aiohttp.ClientSession, media: str) -> None:
    async with http.post(CHAT, data=b'{"messages": []}', headers={"Content-Type": media}) as reply:
        assert reply.status == 400
        assert "Unsupported Media Type" in (await reply.json())["error"]["message"]
