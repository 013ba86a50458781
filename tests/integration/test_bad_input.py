"""What no client should send: a clear error in OpenAI's shape each time, and the next request is served."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest

from dualmap_cli.stack import Stack
from dualmap_sim.engine.canonical import answers

from .conftest import (
    MODEL,
    chat,
    close,
    completion,
    connect,
    error_of,
    exchange,
    faults,
    post,
    raw_request,
    unique_text,
)

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MIB = 1 << 20


@pytest.fixture(autouse=True)
async def still_serves(system: Stack, http: aiohttp.ClientSession) -> AsyncIterator[None]:
    """After anything in here both routers answer, and rightly."""
    yield
    for engine in system.engine_urls:
        await faults(http, engine, reset=True)
    for url in system.router_urls:
        body = chat(unique_text())
        status, answer, _ = await post(http, url, CHAT, body)
        assert status == 200, answer
        assert answers(body, answer["choices"][0]["message"]["content"])


def say(**fields: Any) -> bytes:
    return json.dumps({**chat("hello"), **fields}).encode()


def text(prompt: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": prompt}).encode()


BODIES: list[tuple[str, bytes, str]] = [
    (CHAT, b"", "not valid JSON"),
    (CHAT, b"{", "not valid JSON"),
    (CHAT, b'{"messages": [}', "not valid JSON"),
    (CHAT, b"hello", "not valid JSON"),
    (CHAT, b"\x00\x01\x02", "not valid JSON"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', ""),
    (CHAT, b'{"messages": [{"role": "\xff", "content": "a"}]}', "not valid JSON"),
    (CHAT, b'\xff\xfe{"messages": []}', "not valid JSON"),
    (CHAT, say() + b"}", "not valid JSON"),
    (CHAT, b"[]", "Expected `object`"),
    (CHAT, b"null", "Expected `object`"),
    (CHAT, b'"text"', "Expected `object`"),
    (CHAT, b"{}", "messages"),
    (CHAT, say(messages=[]), "must not be empty"),
    (CHAT, say(messages="hi"), "$.messages"),
    (CHAT, say(messages={"role": "user"}), "$.messages"),
    (CHAT, say(messages=["hi"]), "$.messages[0]"),
    (CHAT, say(messages=[{"content": "a"}]), "role"),
    (CHAT, say(messages=[{"role": 1, "content": "a"}]), "$.messages[0].role"),
    (CHAT, say(messages=[{"role": "user", "content": 5}]), "content"),
    (CHAT, say(messages=[{"role": "user", "content": {"a": 1}}]), "content"),
    (CHAT, say(messages=[{"role": "user", "content": True}]), "content"),
    (CHAT, say(model=5), "$.model"),
    (CHAT, say(model=["a"]), "$.model"),
    (CHAT, say(stream="yes"), "$.stream"),
    (CHAT, say(stream=1), "$.stream"),
    (CHAT, say(stream=True, stream_options=True), "$.stream_options"),
    (CHAT, say(stream=True, stream_options={"include_usage": "x"}), "$.stream_options.include_usage"),
    (CHAT, say(cache_salt=7), "$.cache_salt"),
    (CHAT, say(priority="high"), "$.priority"),
    (CHAT, say(priority=10**30), "priority"),
    (CHAT, say(priority=2**63), "priority"),
    (CHAT, say(max_tokens="many"), "validation error"),
    (CHAT, say(temperature={}), "validation error"),
    (CHAT, say(tools="hammer"), "validation error"),
    (CHAT, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    (CHAT, say(messages=[{"role": "user", "content": []}])[:-1] + b',"x":' + b'{"a":' * 50_000 + b"1", ""),
    (CHAT, b'{"messages": [{"role": "user", "content": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}", ""),
    (TEXT, b"{}", "prompt"),
    (TEXT, text(""), "must not be empty"),
    (TEXT, text([]), "must not be empty"),
    (TEXT, text([""]), "must not be empty"),
    (TEXT, text([[]]), "must not be empty"),
    (TEXT, text(None), "must not be empty"),
    (TEXT, text(7), "$.prompt"),
    (TEXT, text({"a": 1}), "$.prompt"),
    (TEXT, text([1, "a"]), "must not mix"),
    (TEXT, text([-1]), "$.prompt"),
    (TEXT, text([2**32]), "$.prompt"),
    (TEXT, text([10**30]), ""),
    (TEXT, text([1.5]), "$.prompt"),
    (TEXT, text([True]), "$.prompt"),
    (TEXT, text([[1, "a"]]), "$.prompt"),
    (TEXT, b'{"prompt": "a", "max_tokens": NaN}', ""),
    (TEXT, b'{"prompt": "\xc3\x28"}', "not valid JSON"),
    (TEXT, b'{"prompt": "\\ud800"}', "not valid JSON"),
    (TEXT, b'{"prompt": "a", "cache_salt": "\\ud800"}', "not valid JSON"),
    (EMBED, b"{", "not valid JSON"),
    (EMBED, b"[1]", "Expected `object`"),
    (EMBED, b'{"model": 1, "input": "a"}', "$.model"),
    (EMBED, b"{}", ""),
    ("/v1/responses", b'{"input": ', "not valid JSON"),
    ("/v1/messages", b"nope", "not valid JSON"),
]


@pytest.mark.parametrize(("path", "body", "said"), BODIES, ids=range(len(BODIES)))
async def test_a_body_without_meaning(
    system: Stack, http: aiohttp.ClientSession, path: str, body: bytes, said: str
) -> None:
    status, answer, headers = await post(http, system.router_urls[0], path, body)
    assert status == 400, answer
    assert said in error_of(answer)["message"]
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]


@pytest.mark.parametrize("path", [CHAT, TEXT, EMBED])
async def test_an_unknown_model(system: Stack, http: aiohttp.ClientSession, path: str) -> None:
    body = {"model": "no-such", "messages": chat("a")["messages"], "prompt": "a", "input": "a"}
    status, answer, _ = await post(http, system.router_urls[0], path, body)
    assert (status, error_of(answer)["code"], error_of(answer)["param"]) == (404, "model_not_found", "model")
    assert "no-such" in error_of(answer)["message"]


SLO, PRIORITY = "x-dualmap-slo-ttft-ms", "x-dualmap-priority"
HEADERS = [
    (SLO, "-5"), (SLO, "0"), (SLO, "nan"), (SLO, "inf"), (SLO, "1e300"), (SLO, "9e999"), (SLO, "soon"), (SLO, ""),
    (PRIORITY, "high"), (PRIORITY, "1.5"), (PRIORITY, "99999999999"), (PRIORITY, "1" * 5000),
    ("x-dualmap-policy", "best"), ("x-dualmap-policy", ""), ("x-dualmap-prefix-key", ""),
    ("x-dualmap-prefix-key", "k" * 1000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HEADERS, ids=range(len(HEADERS)))
async def test_a_header_without_meaning(
    system: Stack, http: aiohttp.ClientSession, name: str, value: str
) -> None:
    for path in (CHAT, "/debug/explain"):
        status, answer, _ = await post(http, system.router_urls[0], path, chat("hello"), **{name: value})
        assert (status, error_of(answer)["param"]) == (400, name)
        assert name in error_of(answer)["message"]


# Sizes


def rss_bytes(system: Stack, router: str = "router-1") -> int:
    return int(psutil.Process(system.children[router].pid).memory_info().rss)


async def test_a_body_over_the_limit(system: Stack, http: aiohttp.ClientSession) -> None:
    body = b'{"prompt": "' + b"a" * (64 * MIB) + b'"}'
    before = rss_bytes(system)
    for _ in range(2):
        status, answer, _ = await post(http, system.router_urls[0], TEXT, body)
        assert (status, error_of(answer)["code"]) == (413, "body_too_large")
    assert rss_bytes(system) - before < 32 * MIB


async def test_a_body_over_the_limit_in_chunks(system: Stack, http: aiohttp.ClientSession) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"a" * MIB

    before = rss_bytes(system)
    async with http.post(system.router_urls[0] + TEXT, data=chunks()) as response:
        assert response.status == 413
        error_of(await response.json())
    assert rss_bytes(system) - before < 64 * MIB


async def test_a_prompt_that_no_instance_can_hold(system: Stack, http: aiohttp.ClientSession) -> None:
    """Within the body's limit, far beyond the model's: trying again would not help, so it is no 429."""
    status, answer, _ = await post(http, system.router_urls[0], TEXT, completion("word " * 1_000_000))
    assert status == 400
    assert "maximum context length" in error_of(answer)["message"]


async def test_ten_thousand_headers(system: Stack) -> None:
    headers = [f"x-h{number}: v" for number in range(10_000)]
    status, answer = await exchange(
        system.router_urls[0], raw_request(CHAT, say(), "POST", "connection: close", *headers)
    )
    assert status == 431
    assert error_of(json.loads(answer))["code"] == "headers_too_large"


async def test_a_header_of_a_megabyte(system: Stack) -> None:
    request = raw_request(CHAT, say(), "POST", "connection: close", "x-big: " + "a" * MIB)
    status, answer = await exchange(system.router_urls[0], request)
    assert status == 431
    assert error_of(json.loads(answer))["code"] == "headers_too_large"


# Broken HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/completions\r\n\r\n",
        raw_request(TEXT, text("a"), "POST", "content-length: -1"),
        raw_request(TEXT, text("a"), "POST", "content-length: many"),
        raw_request(TEXT, text("a"), "POST", "content-length: 5", "content-length: 6"),
        raw_request(TEXT, text("a"), "POST", f"content-length: {10**30}"),
        raw_request(TEXT, b"zz\r\nhello\r\n0\r\n\r\n", "POST", "transfer-encoding: chunked"),
        raw_request("/v1/ models", b"", "GET"),
        raw_request(TEXT, text("a"), "POST", "bad header: x"),
    ],
    ids=range(11),
)
async def test_broken_http(system: Stack, data: bytes) -> None:
    """Refused in OpenAI's shape, and the connection ends; it reaches no engine."""
    status, answer = await exchange(system.router_urls[0], data)
    assert status == 400
    assert "not valid HTTP" in error_of(json.loads(answer))["message"]


async def test_fewer_bytes_than_promised(system: Stack) -> None:
    body = text("hello")
    request = raw_request(TEXT, body, "POST", f"content-length: {len(body) + 100}")
    status, _ = await exchange(system.router_urls[0], request, eof=True)
    assert status == 0 or 400 <= status < 500
    status, _ = await exchange(
        system.router_urls[0],
        raw_request(TEXT, b"50\r\n" + body[:-1], "POST", "transfer-encoding: chunked"),
        eof=True,
    )
    assert status == 0 or 400 <= status < 500
    # ... also when it just hangs up.
    _, writer = await connect(system.router_urls[0])
    writer.write(request)
    await writer.drain()
    await close(writer)


async def test_more_bytes_than_promised(system: Stack) -> None:
    body = text("hello")
    request = raw_request(TEXT, body + b"GARBAGE\r\n\r\n", "POST", f"content-length: {len(body)}")
    status, answer = await exchange(system.router_urls[0], request, eof=True)
    assert status == 200
    assert b'"text_completion"' in answer


@pytest.mark.parametrize("name", ["x-odd", "x-request-id", "traceparent", SLO])
async def test_a_header_that_is_not_text(system: Stack, name: str) -> None:
    request = raw_request(TEXT, text("hello"), "POST", "connection: close", f"{name}: a\xff\xe9b")
    status, answer = await exchange(system.router_urls[0], request)
    # What only passes through is left out; what is for the router must have a meaning.
    if name == SLO:
        assert (status, error_of(json.loads(answer))["param"]) == (400, SLO)
    else:
        assert status == 200, answer


async def test_connections_that_say_nothing(system: Stack) -> None:
    writers = [(await connect(system.router_urls[0]))[1] for _ in range(50)]
    writers[0].write(b"POST /v1/comp")
    status, _ = await exchange(
        system.router_urls[0], raw_request("/healthz", b"", "GET", "connection: close")
    )
    assert status == 200
    for writer in writers:
        await close(writer)


# Engines that fail


async def test_an_engine_that_talks_nonsense(system: Stack, http: aiohttp.ClientSession) -> None:
    """What an engine says in valid HTTP is relayed, right or wrong."""
    for engine in system.engine_urls:
        await faults(http, engine, garbage=True)
    body = chat(unique_text(), max_tokens=4)
    status, answer, _ = await post(http, system.router_urls[0], CHAT, body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "?!# " * 4)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_error_is_the_engines(
    system: Stack, http: aiohttp.ClientSession, stream: bool
) -> None:
    for engine in system.engine_urls:
        await faults(http, engine, error_rate=1.0)
    status, answer, headers = await post(
        http, system.router_urls[0], CHAT, chat(unique_text(), stream=stream)
    )
    error = {
        "message": "The engine failed, as it was told to.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert (status, answer) == (500, {"error": error})
    assert headers["x-dualmap-instance"].startswith("worker-")


async def test_many_bad_requests_at_once(system: Stack, http: aiohttp.ClientSession) -> None:
    good = [chat(unique_text(), max_tokens=8) for _ in range(20)]
    bad = [body for _, body, _ in BODIES if len(body) < 1000]
    results = await asyncio.gather(
        *(post(http, system.router_urls[0], CHAT, body) for body in good),
        *(post(http, system.router_urls[0], CHAT, body) for body in bad),
    )
    for body, (status, answer, _) in zip(good, results, strict=False):
        assert status == 200
        assert answers(body, answer["choices"][0]["message"]["content"])
    assert {status for status, _, _ in results[len(good) :]} == {400}
