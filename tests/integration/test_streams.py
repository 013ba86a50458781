"""Streams, and clients that leave or do not read: the engine stops, and nothing is left behind."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dualmap_cli.leftovers import find_leftovers
from dualmap_cli.stack import Stack

from ..needs import needs
from ..waiting import eventually
from .conftest import (
    books_of,
    chat,
    close,
    connect,
    engines_running,
    faults,
    raw_request,
    samples,
    unique_text,
)

LONG = 240_000
"""Bytes of a prompt whose prefill takes a second or more."""


@asynccontextmanager
async def opened(
    url: str, body: dict[str, Any], name: str
) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """A request sent over a connection of its own, which is cut at the end."""
    reader, writer = await connect(url)
    try:
        data = json.dumps(body).encode()
        writer.write(raw_request("/v1/chat/completions", data, "POST", f"x-request-id: {name}"))
        await writer.drain()
        yield reader, writer
    finally:
        await close(writer)


@needs("curl")
async def test_curl_sees_chunks_as_they_come(
    system: Stack, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    for url in system.engine_urls:
        await faults(http, url, slow_down=8.0)
    (tmp_path / "body.json").write_text(json.dumps(chat(unique_text(), max_tokens=16, stream=True)))
    name = f"curl-{unique_text(0).strip()}"
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"{system.router_urls[0]}/v1/chat/completions", "-d", f"@{tmp_path / 'body.json'}",
        "-H", "content-type: application/json", "-H", f"x-request-id: {name}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first = await process.stdout.readline()
    assert first.startswith(b"data: {")
    # The engine is still at it when the first chunk is here.
    assert (await books_of(http, system, name))["finished"] == 0
    rest = await process.stdout.read()
    assert await process.wait() == 0
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b"data: {") >= 16
    assert (await books_of(http, system, name))["finished"] == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_before_the_first_byte(
    system: Stack, http: aiohttp.ClientSession, stream: bool
) -> None:
    name = f"early-{unique_text(0).strip()}"
    body = chat(unique_text(LONG), stream=stream)
    async with opened(system.router_urls[0], body, name):
        await eventually(lambda: engines_running(http, system))
    await eventually(lambda: no_longer_runs(http, system), 5.0)
    assert await books_of(http, system, name) == {"started": 1, "finished": 0, "aborted": 1, "failed": 0}


async def no_longer_runs(http: aiohttp.ClientSession, system: Stack) -> bool:
    return await engines_running(http, system) == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_in_the_middle(
    system: Stack, http: aiohttp.ClientSession, stream: bool
) -> None:
    name = f"middle-{unique_text(0).strip()}"
    body = chat(unique_text(), stream=stream, max_tokens=50_000)
    before = (await samples(http, system.router_urls[0]))["dualmap_client_gone_total"]
    async with opened(system.router_urls[0], body, name) as (reader, _):
        if stream:
            await reader.readuntil(b"data: {")
            await reader.readuntil(b"data: {")
        else:
            await eventually(lambda: engines_running(http, system))
    await eventually(lambda: no_longer_runs(http, system), 5.0)
    assert (await books_of(http, system, name))["aborted"] == 1
    assert (await samples(http, system.router_urls[0]))["dualmap_client_gone_total"] == before + 1


async def test_clients_that_leave_the_queue(system: Stack, http: aiohttp.ClientSession) -> None:
    names = [f"queue-{unique_text(0).strip()}" for _ in range(8)]
    async with AsyncExitStack() as clients:
        for index, name in enumerate(names):
            body = chat(unique_text(LONG), stream=True)
            await clients.enter_async_context(opened(system.router_urls[index % 2], body, name))

        async def queued() -> bool:
            left = await find_leftovers(system.redis_url, "demo", system.router_urls)
            return left.queued >= 2 and left.charges_s > 0

        await eventually(queued)
    await eventually(lambda: no_longer_runs(http, system), 5.0)
    books = [await books_of(http, system, name) for name in names]
    assert sum(book["finished"] for book in books) == 0
    assert sum(book["started"] for book in books) < len(names)


async def test_a_client_that_does_not_read_stalls_nobody(system: Stack, http: aiohttp.ClientSession) -> None:
    text = unique_text(9000)
    slow = chat(text, stream=True, max_tokens=50_000, n=32)
    name = f"slow-{unique_text(0).strip()}"
    async with opened(system.router_urls[0], slow, name) as (reader, _):
        # It has begun, and nothing of it is read from here on: the socket's buffers fill up.
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body, there = chat(text, stream=True, max_tokens=40), {"x-dualmap-policy": "cache-affinity"}
        for _ in range(3):
            async with http.post(
                f"{system.router_urls[0]}/v1/chat/completions", json=body, headers=there
            ) as response:
                assert f"x-dualmap-instance: {response.headers['x-dualmap-instance']}" in head.lower()
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert (await books_of(http, system, name))["finished"] == 0
    await eventually(lambda: no_longer_runs(http, system), 5.0)
