"""An engine that breaks HTTP behind a worker: a clear error each time, and the next answer is relayed again."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from dualmap_cli.stack import Stack

from ..waiting import eventually
from .conftest import chat, error_of, leftovers, post
from .odd_engine import GOOD, OddEngine, answer, odd_engine

POOL = "odd"


@pytest.fixture(scope="module")
def odd() -> Iterator[OddEngine]:
    with odd_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def odd_pool(session_system: Stack, odd: OddEngine) -> Iterator[str]:
    """A pool of its own with that engine alone; its router's URL."""
    stack = session_system

    async def start() -> tuple[str, str, str]:
        worker = stack.start_worker(odd.url, pool=POOL)
        router = stack.start_router(pool=POOL)
        await stack.event(worker, "worker.ready")
        url = str((await stack.event(router, "router.ready"))["url"])
        await stack.event(router, "session.connected")
        return worker, router, url

    with asyncio.Runner() as runner:
        worker, router, url = runner.run(start())
        yield url
        for name in (router, worker):
            runner.run(stack.children[name].stop())


@pytest.fixture
async def url(
    odd_pool: str, odd: OddEngine, http: aiohttp.ClientSession, system: Stack
) -> AsyncIterator[str]:
    """The odd pool's router; after the test it relays a proper answer, and holds nothing."""

    async def ready() -> bool:
        async with http.get(f"{odd_pool}/readyz") as response:
            return response.status == 200

    await eventually(ready)
    yield odd_pool
    odd.says = answer("200 OK", GOOD, "content-type: application/json")
    status, got, _ = await post(http, odd_pool, "/v1/chat/completions", chat("hello"))
    assert (status, got) == (200, json.loads(GOOD))
    assert (await leftovers(system, POOL, [odd_pool])).clean


BROKEN = {
    "not-http": (b"lorem ipsum\r\n\r\n", 502, "bad_answer"),
    "binary": (bytes(range(256)) * 40, 502, "bad_answer"),
    "silence": (b"", 502, "engine_lost"),
    "half-a-head": (b"HTTP/1.1 200 OK\r\ncontent-le", 502, "engine_lost"),
    "bad-status": (b"HTTP/1.1 abc OK\r\n\r\n", 502, "bad_answer"),
    "bad-header": (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", 502, "bad_answer"),
    "endless-header": (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", 502, "bad_answer"),
    "short-body": (answer("200 OK", b"abc", "content-length: 10"), 502, "engine_lost"),
    "bad-chunk": (answer("200 OK", b"zz\r\nabc\r\n", "transfer-encoding: chunked"), 502, "bad_answer"),
    "cut-chunks": (answer("200 OK", b"3\r\nabc\r\n", "transfer-encoding: chunked"), 502, "engine_lost"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stream"),
    [(name, False) for name in BROKEN]
    # The rest sends a head and a beginning, which a stream has passed on by then.
    + [(name, True) for name in BROKEN if name not in ("short-body", "cut-chunks")],
)
async def test_broken_http(
    odd: OddEngine, url: str, http: aiohttp.ClientSession, name: str, stream: bool
) -> None:
    odd.says, status, code = BROKEN[name]
    odd.asked = 0
    got, body, _ = await post(http, url, "/v1/chat/completions", chat("hello", stream=stream))
    error = error_of(body)
    assert got == status, error
    assert error["code"] == code
    # It is tried again, since another instance might do better; here there is none.
    assert odd.asked == 4


VALID = {
    "500-text": ("500 Internal Server Error", b"out of cheese", "content-type: text/plain"),
    "400-json": ("400 Bad Request", b'{"error": {"message": "no"}}', "content-type: application/json"),
    "422": ("422 Unprocessable Content", b'{"detail": []}', "content-type: application/json"),
    "429": ("429 Too Many Requests", b"{}", "retry-after: 7"),
    "503-empty": ("503 Service Unavailable", b"", "x-odd: yes"),
    "302": ("302 Found", b"", "location: http://127.0.0.1:1/elsewhere"),
    "200-not-json": ("200 OK", b"\xff\xfe\x00", "content-type: application/octet-stream"),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_valid_http_arrives_unchanged(
    odd: OddEngine, url: str, http: aiohttp.ClientSession, name: str, stream: bool
) -> None:
    status, body, header = VALID[name]
    odd.says, odd.asked = answer(status, body, header), 0
    async with http.post(
        f"{url}/v1/chat/completions", json=chat("hello", stream=stream), allow_redirects=False
    ) as response:
        assert await response.read() == body
    assert response.status == int(status.split()[0])
    field, _, value = header.partition(": ")
    assert response.headers[field] == value
    assert odd.asked == 1


async def test_a_header_that_is_not_text(odd: OddEngine, url: str, http: aiohttp.ClientSession) -> None:
    odd.says = b"HTTP/1.1 200 OK\r\nx-odd: \xff\xfe\r\nx-fine: yes\r\ncontent-length: 2\r\n\r\n{}"
    async with http.post(f"{url}/v1/chat/completions", json=chat("hello")) as response:
        assert (response.status, await response.read()) == (200, b"{}")
    assert response.headers["x-fine"] == "yes"


@pytest.mark.parametrize("how", ["cut-chunks", "short-body"])
async def test_a_stream_that_is_cut_says_so(
    odd: OddEngine, url: str, http: aiohttp.ClientSession, how: str
) -> None:
    event = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    kind = "content-type: text/event-stream"
    chunk = f"{len(event):x}\r\n".encode() + event + b"\r\n"
    odd.says = {
        "cut-chunks": answer("200 OK", chunk, kind, "transfer-encoding: chunked"),
        "short-body": answer("200 OK", event, kind, "content-length: 1000"),
    }[how]
    async with http.post(f"{url}/v1/chat/completions", json=chat("hello", stream=True)) as response:
        assert response.status == 200
        events = [line for line in (await response.read()).split(b"\n\n") if line]
    assert events[0] == event.strip()
    [said] = events[1:]
    assert error_of(json.loads(said.removeprefix(b"data: ")))["code"] == "answer_interrupted"
