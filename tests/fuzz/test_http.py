"""Clients' bytes through the HTTP connection, on a transport in memory: how they are cut changes nothing."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.http_connection import HttpConnection
from dualmap_router.http_server import HttpLimits, HttpServer

from ..services.router.serving import OPEN, chunked, echo, error_of, get, post
from .strategies import cuts, damaged

LIMITS = HttpLimits(max_body_bytes=2000, max_held_bytes=5000, max_header_bytes=1500, max_headers=12)
WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\x80", b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffffffffff\r\n",
    b"content-length: 5\r\n", b"content-length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n", b"upgrade: h2c\r\n",
    b"connection: upgrade\r\n", b"connection: close\r\n", b"expect: 100-continue\r\n", b"host: b\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/0.9", b"CONNECT ", b"TRACE ",
    b"x: " + b"y" * 1500, b"x" * 2100,
)  # fmt: skip
REQUESTS = st.sampled_from(
    [
        post(b"hello"),
        post(b""),
        post(b"x" * 300, "connection: keep-alive"),
        post(b"old", version="1.0"),
        post(b"abc", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAM"),
        post(b"wait", "expect: 100-continue"),
        post(b"last", "connection: close"),
        chunked(b"ab", b"c" * 40, trailer=b"x-late: 1\r\n"),
        chunked(),
        get("/y?z=1"),
        get("http://elsewhere/v1/models?x=%00"),
        get("/x", method="HEAD"),
        get("*", method="OPTIONS"),
    ]
)
STREAMS = st.lists(REQUESTS, min_size=1, max_size=4).map(b"".join)


class Wire(asyncio.Transport):
    """The client's end: what was written, and whether more may be sent."""

    def __init__(self, protocol: HttpConnection) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = False
        self._protocol = protocol

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_reading(self) -> bool:
        return self.reading and not self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    close = abort


async def asked(pieces: list[bytes]) -> bytes:
    """What a client gets that sends these pieces and then waits for longer than the server does."""
    faults: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    server = HttpServer(echo, LIMITS, lambda error: None, OPEN.enter)
    connection = HttpConnection(server)
    wire = Wire(connection)
    connection.connection_made(wire)
    for piece in pieces:
        await settled(lambda: wire.reading or wire.closed)
        if not wire.closed:
            connection.data_received(piece)
    await settled(lambda: wire.reading or wire.closed)
    await asyncio.sleep(0)
    for _ in range(4):
        if not wire.closed:
            connection.check(loop.time() + 1000)
        await asyncio.sleep(0)
    # Nobody waits for ever, and nothing is held when all is over.
    assert wire.closed
    assert (server.room.held_bytes, server.connections, faults) == (0, set(), [])
    return wire.written


async def settled(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the connection hangs")


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer; all of them whole."""
    found: list[tuple[int, bytes]] = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 100:
            written = rest
            continue
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        # An answer to HEAD has a length and no body.
        size = 0 if rest.startswith(b"HTTP/1.1 ") or not rest else int(length[1])
        assert len(rest) >= size
        found.append((status, rest[:size]))
        written = rest[size:]
    return found


@given(STREAMS, st.data())
def test_requests_are_the_same_however_they_come(stream: bytes, data: st.DataObject) -> None:
    whole = answers(asyncio.run(asked([stream])))
    assert whole
    assert all(status == 200 for status, _ in whole)
    assert answers(asyncio.run(asked(data.draw(cuts(stream))))) == whole
    assert answers(asyncio.run(asked([bytes([byte]) for byte in stream]))) == whole


@given(STREAMS.flatmap(lambda stream: damaged(stream, WORDS)), st.data())
def test_what_is_damaged_is_answered_the_same_however_it_comes(stream: bytes, data: st.DataObject) -> None:
    whole = answers(asyncio.run(asked([stream])))
    if stream.strip(b"\r\n"):
        assert whole, "nobody is left without an answer"
    for status, body in whole:
        assert status in (200, 400, 405, 408, 413, 431)
        if status != 200 and body:
            error_of(body)
    assert_same(answers(asyncio.run(asked(data.draw(cuts(stream))))), whole)


def assert_same(some: list[tuple[int, bytes]], whole: list[tuple[int, bytes]]) -> None:
    """The same answers, but for which of two faults of one head the last of them names.

    A head in pieces is refused as soon as it is too large. Of one that comes at once the parser tells nothing of what
    stands before a fault in it.
    """
    if some != whole:
        assert (some[:-1], {some[-1][0], whole[-1][0]}) == (whole[:-1], {400, 431})


def test_a_head_that_is_too_large_and_broken_is_refused_for_either() -> None:
    large, broken = b"GET /x HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1600, b"\n\r\n\0"
    whole = answers(asyncio.run(asked([get("/x") + large + broken])))
    pieces = answers(asyncio.run(asked([get("/x") + large[:9], large[9:], broken])))
    assert [[status for status, _ in some] for some in (whole, pieces)] == [[200, 400], [200, 431]]
    assert_same(pieces, whole)


@given(st.binary(max_size=200), st.data())
def test_any_bytes_get_an_answer(stream: bytes, data: st.DataObject) -> None:
    whole = answers(asyncio.run(asked([stream])))
    assert [status for status, _ in whole][-1:] == (
        [400] if whole and whole[-1][0] != 408 else [408] * len(whole[-1:])
    )
    assert answers(asyncio.run(asked(data.draw(cuts(stream))))) == whole
