"""The HTTP server on real sockets: framing, order, streams, slow and vanishing clients; nothing is held at the end."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_router.errors import ClientGoneError
from dualmap_router.http_message import HttpRequest, HttpResponse

from ...waiting import eventually
from .serving import LIMITS, chunked, echo, get, post, serving

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
            await eventually(lambda: served.server.room.held_bytes == 3)
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
