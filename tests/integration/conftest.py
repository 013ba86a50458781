"""One small system for the tests of the HTTP surface, and what they ask it. Whatever a test does, it leaves nothing."""

import asyncio
import contextlib
import io
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dualmap_cli.leftovers import Leftovers, settle
from dualmap_cli.stack import Stack, StackOptions

MODEL = "sim-model"
_numbers = itertools.count(1)


def running(options: StackOptions) -> Iterator[Stack]:
    """A system that outlives one test's event loop; a fixture yields from it."""
    stack = Stack(options)
    with asyncio.Runner() as runner:
        runner.run(stack.__aenter__())
        try:
            yield stack
        finally:
            runner.run(stack.stop())


@asynccontextmanager
async def healed(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Stack]:
    """A shared system for one test; after it, it must hold nothing."""
    yield stack
    for url in stack.engine_urls:
        await faults(http, url, reset=True)
    assert (await leftovers(stack)).clean


@pytest.fixture(scope="session")
def session_system() -> Iterator[Stack]:
    """Two routers, two workers, one rebalancer per test process; tests take `system`."""
    yield from running(StackOptions(routers=2, workers=2, rebalancers=1, time_scale=4.0))


@pytest.fixture
async def system(session_system: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Stack]:
    """The shared system, healthy."""
    async with healed(session_system, http) as stack:
        yield stack


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that waits for slow machines, but not for ever."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def leftovers(stack: Stack, pool: str | None = None, urls: list[str] | None = None) -> Leftovers:
    """What is left once everything had time to end."""
    return await settle(
        stack.redis_url, pool or stack.options.pool, stack.router_urls if urls is None else urls
    )


def unique_text(num_bytes: int = 200) -> str:
    """A text that no earlier prompt of this process shares a first chunk with."""
    head = f"{time.time_ns()}-{next(_numbers)} "
    return (head + "lorem ipsum dolor sit amet " * (num_bytes // 27 + 1))[: max(num_bytes, len(head))]


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A chat's body with one message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


def completion(prompt: "str | list[int]", **fields: Any) -> dict[str, Any]:
    """A completion's body."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": 4, **fields}


async def post(
    http: aiohttp.ClientSession, url: str, path: str, body: Any, **headers: str
) -> tuple[int, Any, "aiohttp.typedefs.CIMultiDictProxy[str]"]:
    """(status, decoded JSON, headers) of a POST; `body` is bytes or becomes JSON, `_` in a header is `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named.setdefault("content-type", "application/json")
    async with http.post(url + path, headers=named, data=io.BytesIO(data)) as response:
        return response.status, await response.json(), response.headers


async def faults(http: aiohttp.ClientSession, engine_url: str, **settings: Any) -> None:
    """Make an engine fail as told; `reset=True` heals it."""
    async with http.post(f"{engine_url}/admin/faults", json=settings) as response:
        assert response.status == 200, await response.text()


async def stats(http: aiohttp.ClientSession, engine_url: str) -> dict[str, Any]:
    """An engine's own books."""
    async with http.get(f"{engine_url}/admin/stats") as response:
        books: dict[str, Any] = await response.json()
        return books


async def books_of(http: aiohttp.ClientSession, stack: Stack, request_id: str) -> dict[str, int]:
    """How often a request id was started, finished, aborted and failed, over all engines."""
    found = {"started": 0, "finished": 0, "aborted": 0, "failed": 0}
    for url in stack.engine_urls:
        record = (await stats(http, url))["requests"].get(request_id, {})
        for name, count in record.items():
            found[name] += count
    return found


async def engines_running(http: aiohttp.ClientSession, stack: Stack) -> int:
    """Requests inside all engines."""
    return sum([(await stats(http, url))["open"] for url in stack.engine_urls])


def error_of(answer: Any) -> dict[str, Any]:
    """The error of an answer in OpenAI's shape."""
    error = answer["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return dict(error)


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection to a router, for what no HTTP client would send or do."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 24)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a bare connection, whatever its other end did."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def raw_request(target: str, body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    """A request as bytes, with a content length unless a header says how long it is."""
    lines = [f"{method} {target} HTTP/1.1", "host: test", "content-type: application/json", *headers]
    if not any(name.lower().startswith(("content-length", "transfer-encoding")) for name in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def exchange(url: str, data: bytes, eof: bool = False) -> tuple[int, bytes]:
    """Write bytes to a router, read to the end of the connection: (status, body); 0 for no answer at all."""
    reader, writer = await connect(url)
    try:
        async with asyncio.timeout(30):
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
                if eof:
                    writer.write_eof()
            answer = b""
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(1 << 16):
                    answer += chunk
    finally:
        await close(writer)
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def samples(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Sums of the samples by name."""
    async with http.get(f"{url}/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums
