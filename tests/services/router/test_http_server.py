"""The HTTP server on real sockets: framing, order, limits, slow and vanishing clients, and nothing held at the end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_server import HttpLimits, HttpServer

from ..shared.conftest import eventually

LIMITS = HttpLimits(max_body_bytes=1 << 20, max_held_bytes=4 << 20)
Handler = Callable[[HttpRequest, HttpResponse], Awaitable[None]]


async def echo(request: HttpRequest, response: HttpResponse) -> None:
    body = b"%b %b %b" % (request.method.encode(), request.target.encode(), request.body)
    response.send(200, [("content-type", "text/plain")], body)


@dataclass
class Served:
    server: HttpServer
    port: int
    refused: list[ApiError] = field(default_factory=list)

    @asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(handler: Handler = echo, limits: HttpLimits = LIMITS) -> AsyncIterator[Served]:
    refused: list[ApiError] = []
    server = HttpServer(handler, limits, refused.append)
    served = Served(server, await server.start("127.0.0.1", 0), refused)
    try:
        async with asyncio.timeout(60):
            yield served
            # Whatever happened, nothing is held once the clients are gone.
            await eventually(lambda: not server.connections)
            assert server.held_bytes == 0
    finally:
        await server.stop()


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = b""
        if "content-length" in headers and not head_only:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        return int(head[0].split()[1]), headers, body

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.answer()

    async def at_end(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


def post(body: bytes, *headers: str, target: str = "/x", version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "host: a", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(target: str = "/x", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "host: a", *headers, "", ""]).encode("latin-1")


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n" + trailer + b"\r\n"


def error_of(body: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


# Framing


async def test_a_connection_serves_many_requests() -> None:
    async with serving() as served, served.client() as client:
        for number in range(3):
            status, headers, body = await client.ask(post(b"n%d" % number))
            assert (status, body) == (200, b"POST /x n%d" % number)
            assert "date" in headers
            assert "connection" not in headers


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    started: list[str] = []

    async def slower_first(request: HttpRequest, response: HttpResponse) -> None:
        started.append(request.target)
        await asyncio.sleep(0.02 if request.target == "/0" else 0)
        await echo(request, response)

    async with serving(slower_first) as served, served.client() as client:
        await client.send(b"".join(post(b"b%d" % n, target=f"/{n}") for n in range(50)))
        for number in range(50):
            assert (await client.answer())[2] == b"POST /%d b%d" % (number, number)
        assert started == [f"/{n}" for n in range(50)]


async def test_thousands_sent_ahead_do_not_pile_up() -> None:
    async with serving() as served, served.client() as client:
        await client.send(get("/") * 5000)
        for _ in range(5000):
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "stays"),
    [
        (get(), True),
        (get("/x", "connection: close"), False),
        (get("/x", version="1.0"), False),
        (get("/x", "connection: keep-alive", version="1.0"), True),
    ],
)
async def test_who_keeps_the_connection(request_bytes: bytes, stays: bool) -> None:
    async with serving() as served, served.client() as client:
        _, headers, _ = await client.ask(request_bytes)
        assert (headers.get("connection") != "close") == stays
        if stays:
            assert (await client.ask(get()))[0] == 200
        else:
            assert await client.at_end()


async def test_a_head_request_gets_no_body() -> None:
    async with serving() as served, served.client() as client:
        await client.send(get(method="HEAD"))
        status, headers, _ = await client.answer(head_only=True)
        assert (status, headers["content-length"]) == (200, "8")
        assert (await client.ask(get()))[2] == b"GET /x "


async def test_a_chunked_body_and_its_trailers() -> None:
    seen: list[HttpRequest] = []

    async def keep(request: HttpRequest, response: HttpResponse) -> None:
        seen.append(request)
        await echo(request, response)

    async with serving(keep) as served, served.client() as client:
        _, _, body = await client.ask(chunked(b"abc", b"defg", trailer=b"x-admin: yes\r\n"))
        assert body == b"POST /x abcdefg"
        assert seen[0].get("x-admin") is None


async def test_a_client_that_asks_before_it_sends() -> None:
    async with serving() as served, served.client() as client:
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"abc"))[2] == b"POST /x abc"
        # One that would be refused is told so instead.
        await client.send(
            b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await client.answer())[0] == 413


async def test_an_upgrade_is_answered_as_a_plain_request() -> None:
    async with serving() as served, served.client() as client:
        upgrade = post(b"abc", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAM")
        await client.send(upgrade + get("/next", "upgrade: websocket", "connection: upgrade"))
        assert (await client.answer())[2] == b"POST /x abc"
        assert (await client.answer())[2] == b"GET /next "


@pytest.mark.parametrize(
    ("target", "seen", "path"),
    [
        ("/a%20b?q=%C3%BC&r", "/a%20b?q=%C3%BC&r", "/a b"),
        ("http://elsewhere/v1/models?x=1", "/v1/models?x=1", "/v1/models"),
        ("http://elsewhere", "/", "/"),
        ("*", "/*", "/*"),
        ("/a/%2e%2e/b", "/a/%2e%2e/b", "/a/../b"),
    ],
)
async def test_targets(target: str, seen: str, path: str) -> None:
    paths: list[str] = []

    async def keep(request: HttpRequest, response: HttpResponse) -> None:
        paths.append(request.path)
        await echo(request, response)

    async with serving(keep) as served, served.client() as client:
        method = "OPTIONS" if target == "*" else "GET"
        _, _, body = await client.ask(get(target, method=method))
        assert body == f"{method} {seen} ".encode()
        assert paths == [path]


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_requests_do_not_depend_on_how_bytes_arrive(cuts: list[int], seed: int) -> None:
    async def body() -> None:
        whole = post(b"x" * 300) + chunked(b"ab", b"c" * 100) + get("/y?z=1") + post(b"", target="/e")
        async with serving() as served, served.client() as client:
            rest = whole
            for cut in cuts:
                await client.send(rest[:cut])
                await asyncio.sleep(0)
                rest = rest[cut:]
            await client.send(rest)
            bodies = [(await client.answer())[2] for _ in range(4)]
        assert bodies == [
            b"POST /x " + b"x" * 300,
            b"POST /x ab" + b"c" * 100,
            b"GET /y?z=1 ",
            b"POST /e ",
        ]

    asyncio.run(body())


# Streams


async def test_a_stream_in_chunks() -> None:
    async def stream(request: HttpRequest, response: HttpResponse) -> None:
        response.start(200, [("content-type", "text/event-stream")])
        for number in range(3):
            response.write(b"data: %d\n\n" % number)
            response.write(b"")
            await asyncio.sleep(0)
        response.end()

    async with serving(stream) as served, served.client() as client:
        _, headers, body = await client.ask(get())
        assert headers["transfer-encoding"] == "chunked"
        assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert (await client.ask(get()))[2] == body
        await client.send(get(version="1.0"))
        assert (await client.reader.read()).endswith(b"\r\n\r\n" + body)


async def test_a_header_value_cannot_bring_a_header_of_its_own() -> None:
    async def handler(request: HttpRequest, response: HttpResponse) -> None:
        response.send(200, [("x-good", "1"), ("x-bad", "a\r\nx-injected: 1")], b"")

    async with serving(handler) as served, served.client() as client:
        _, headers, _ = await client.ask(get())
        assert headers["x-good"] == "1"
        assert not {"x-bad", "x-injected"} & headers.keys()


async def test_a_slow_reader_holds_back_its_own_answer_only() -> None:
    written = 0

    async def flood(request: HttpRequest, response: HttpResponse) -> None:
        nonlocal written
        if request.target == "/quick":
            await echo(request, response)
            return
        response.start(200, [])
        with contextlib.suppress(ClientGoneError):
            while True:
                response.write(b"x" * 65536)
                written += 65536
                if response.full:
                    await response.room()

    async with serving(flood) as served, served.client() as slow, served.client() as quick:
        await slow.send(get("/flood"))
        await eventually(lambda: any(connection.full for connection in served.server.connections))
        # The kernel's buffers fill up, and then nothing more is written.
        stopped_at = -1
        while stopped_at != written:
            stopped_at = written
            for _ in range(20):
                assert (await quick.ask(get("/quick")))[0] == 200
        assert stopped_at < 64 << 20
        # It goes on as the client reads.
        await slow.reader.readexactly(stopped_at)
        await eventually(lambda: written > stopped_at)


async def test_who_reads_nothing_for_long_is_cut_off() -> None:
    gone: list[str] = []

    async def flood(request: HttpRequest, response: HttpResponse) -> None:
        response.start(200, [])
        try:
            while True:
                response.write(b"x" * 65536)
                if response.full:
                    await response.room()
        except ClientGoneError:
            gone.append("gone")

    async with serving(flood, replace(LIMITS, stall_s=0.1)) as served, served.client() as client:
        await client.send(get())
        await eventually(lambda: gone)
        await eventually(lambda: not served.server.connections)


async def test_a_vanished_client_is_told_of() -> None:
    gone = asyncio.Event()

    async def wait(request: HttpRequest, response: HttpResponse) -> None:
        response.on_gone = gone.set
        await gone.wait()
        with pytest.raises(ClientGoneError):
            response.send(200, [], b"too late")

    async with serving(wait) as served:
        async with served.client() as client:
            await client.send(post(b"abc"))
            await eventually(lambda: served.server.held_bytes == 3)
        await gone.wait()


async def test_an_answer_left_unfinished_is_cut() -> None:
    async def half(request: HttpRequest, response: HttpResponse) -> None:
        if request.target == "/half":
            response.start(200, [])
            response.write(b"half")

    async with serving(half) as served:
        for target, start in (("/half", b"HTTP/1.1 200"), ("/none", b"")):
            async with served.client() as client:
                await client.send(get(target))
                got = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := await client.reader.read(4096):
                        got += chunk
                assert got.startswith(start)
                assert not got.endswith(b"0\r\n\r\n")


# Limits


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\r\n folded\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, identity\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\nGET /smuggled HTTP/1.1\n\n",
    ],
    ids=range(14),
)
async def test_what_is_not_http(data: bytes) -> None:
    async with serving() as served, served.client() as client:
        status, headers, body = await client.ask(data)
        assert (status, headers["connection"]) == (400, "close")
        assert error_of(body)["type"] == "invalid_request_error"
        assert await client.at_end()
        assert [error.status for error in served.refused] == [400]


async def test_a_tunnel_is_not_to_be_had() -> None:
    async with serving() as served, served.client() as client:
        status, headers, _ = await client.ask(
            b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        assert (status, headers["connection"]) == (405, "close")
        assert await client.at_end()


async def test_a_bad_request_behind_good_ones_waits_its_turn() -> None:
    async def slow(request: HttpRequest, response: HttpResponse) -> None:
        await asyncio.sleep(0.02)
        await echo(request, response)

    async with serving(slow) as served, served.client() as client:
        await client.send(get("/1") + get("/2") + b"nonsense\r\n\r\n" + get("/3"))
        assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 400]
        assert await client.at_end()


async def test_a_body_over_the_limit_is_refused_before_it_comes() -> None:
    async with serving() as served, served.client() as client:
        await client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1048577\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, error_of(body)["code"]) == (413, "body_too_large")
        # Who writes on all the same is not cut off before it could read that.
        for _ in range(16):
            await client.send(b"x" * 65536)
        assert served.server.held_bytes == 0


async def test_a_chunked_body_over_the_limit() -> None:
    async with serving() as served, served.client() as client:
        await client.send(chunked(*[b"x" * 65536] * 40))
        status, _, body = await client.answer()
        assert (status, error_of(body)["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("pieces", [1, 7])
async def test_heads_over_the_limit(pieces: int) -> None:
    many = get("/x", *(f"x-{n}: v" for n in range(300)))
    large = get("/x", "x-big: " + "a" * 70_000)
    endless = b"GET /x HTTP/1.1\r\nx-big: " + b"a" * 400_000
    target = get("/" + "a" * 70_000)
    async with serving() as served:
        for data in (many, large, endless, target):
            async with served.client() as client:
                step = len(data) // pieces + 1
                for start in range(0, len(data), step):
                    await client.send(data[start : start + step])
                    await asyncio.sleep(0.01)
                status, _, body = await client.answer()
                assert (status, error_of(body)["code"]) == (431, "headers_too_large")


async def test_a_large_body_does_not_count_as_head() -> None:
    data = post(b"x" * 500_000)
    async with serving() as served, served.client() as client:
        await client.send(data[:20])
        await asyncio.sleep(0.01)
        assert (await client.ask(data[20:]))[0] == 200
        # ... nor does what came before a head that is cut in two.
        await client.send(data + data[:20])
        assert (await client.answer())[0] == 200
        assert (await client.ask(data[20:]))[0] == 200


async def test_bodies_held_have_a_bound_for_all_clients() -> None:
    release = asyncio.Event()

    async def hold(request: HttpRequest, response: HttpResponse) -> None:
        await release.wait()
        await echo(request, response)

    limits = replace(LIMITS, max_held_bytes=250_000)
    async with (
        serving(hold, limits) as served,
        served.client() as a,
        served.client() as b,
        served.client() as c,
    ):
        for client in (a, b):
            await client.send(post(b"x" * 100_000))
        await eventually(lambda: served.server.held_bytes == 200_000)
        status, headers, body = await c.ask(post(b"x" * 100_000))
        assert (status, headers["retry-after"], error_of(body)["code"]) == (429, "1", "overloaded")
        release.set()
        assert [(await client.answer())[0] for client in (a, b)] == [200, 200]
        assert served.server.held_bytes == 0


@pytest.mark.parametrize(
    ("limits", "begun"),
    [
        (replace(LIMITS, head_s=0.1), b"POST /x HTTP/1.1\r\nhost: a\r\n"),
        (replace(LIMITS, body_s=0.1), b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ],
)
async def test_a_request_that_does_not_come(limits: HttpLimits, begun: bytes) -> None:
    async with serving(limits=limits) as served, served.client() as client:
        status, headers, body = await client.ask(begun)
        assert (status, headers["connection"]) == (408, "close")
        assert error_of(body)["code"] == "request_timeout"
        assert served.server.held_bytes == 0


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    release = asyncio.Event()

    async def hold(request: HttpRequest, response: HttpResponse) -> None:
        await release.wait()
        await echo(request, response)

    limits = replace(LIMITS, keep_alive_s=0.1, head_s=0.1, body_s=0.1)
    async with serving(hold, limits) as served, served.client() as idle, served.client() as busy:
        await busy.send(get())
        assert await idle.at_end()
        await eventually(lambda: len(served.server.connections) == 1)
        release.set()
        assert (await busy.answer())[0] == 200


async def test_a_connection_too_many() -> None:
    limits = replace(LIMITS, max_connections=2)
    async with serving(limits=limits) as served, served.client() as a, served.client() as b:
        assert [(await client.ask(get()))[0] for client in (a, b)] == [200, 200]
        async with served.client() as c:
            status, _, body = await c.answer()
            assert (status, error_of(body)["code"]) == (503, "overloaded")
            assert await c.at_end()


async def test_draining_closes_what_is_idle_and_finishes_what_runs() -> None:
    release = asyncio.Event()

    begun = asyncio.Event()

    async def hold(request: HttpRequest, response: HttpResponse) -> None:
        if request.target == "/slow":
            begun.set()
            await release.wait()
        await echo(request, response)

    async with serving(hold) as served, served.client() as idle, served.client() as busy:
        assert (await idle.ask(get()))[0] == 200
        await busy.send(get("/slow"))
        await begun.wait()
        served.server.drain()
        assert await idle.at_end()
        # It still listens: who comes now is answered, and sent away after that.
        async with served.client() as late:
            assert (await late.ask(get()))[1]["connection"] == "close"
        release.set()
        assert (await busy.answer())[2] == b"GET /slow "


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_no_bytes_break_it(data: bytes) -> None:
    async def body() -> None:
        async with serving() as served:
            for start in (
                b"",
                b"POST /x HTTP/1.1\r\n",
                b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            ):
                async with served.client() as client:
                    await client.send(start + data)
                    client.writer.write_eof()
                    with contextlib.suppress(ConnectionError):
                        await client.reader.read()
            async with served.client() as client:
                assert (await client.ask(get()))[0] == 200

    asyncio.run(body())
