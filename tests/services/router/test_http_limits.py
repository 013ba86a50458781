"""What the HTTP server refuses and whom it cuts off: no bytes break it, and nothing is held at the end."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_server import HttpLimits

from ...waiting import eventually
from .serving import LIMITS, chunked, echo, error_of, get, post, serving


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
        assert served.server.room.held_bytes == 0


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
        await eventually(lambda: served.server.room.held_bytes == 200_000)
        status, headers, body = await c.ask(post(b"x" * 100_000))
        assert (status, headers["retry-after"], error_of(body)["code"]) == (429, "1", "overloaded")
        release.set()
        assert [(await client.answer())[0] for client in (a, b)] == [200, 200]
        assert served.server.room.held_bytes == 0


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
        assert served.server.room.held_bytes == 0


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
