"""The gRPC stream against real grpcio servers, and against an other end that breaks the rules."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_router.grpc_stream import GrpcStream

from ...waiting import eventually

METHOD = "/test.Test/Session"
MIB = 1 << 20
PINGS_ALLOWED = {"http2.min_recv_ping_interval_without_data_ms": 10, "http2.max_ping_strikes": 0}
Behaviour = Callable[[AsyncIterator[bytes], Any], Awaitable[None]]


class Far:
    """What came of a stream."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[str] = []

    async def connect(self, port: int, keepalive_s: float = 5.0) -> GrpcStream:
        def make() -> GrpcStream:
            return GrpcStream(
                METHOD, f"127.0.0.1:{port}", self.messages.append, self.ends.append, keepalive_s
            )

        _, stream = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)
        return stream


@asynccontextmanager
async def grpcio(behaviour: Behaviour, **options: int) -> AsyncIterator[tuple[int, grpc.aio.Server]]:
    async def session(frames: AsyncIterator[bytes], context: Any) -> None:
        await behaviour(frames, context)

    sizes = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    named = tuple((f"grpc.{name}", value) for name, value in options.items())
    server = grpc.aio.server(options=(*sizes, *named))
    method = grpc.stream_stream_rpc_method_handler(session)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Session": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with asyncio.timeout(60):
            yield port, server
    finally:
        await server.stop(0)


async def echo(frames: AsyncIterator[bytes], context: Any) -> None:
    async for frame in frames:
        await context.write(frame)


# A real server


async def test_messages_of_every_size_come_back_in_order() -> None:
    sizes = [0, 1, 5, 16379, 16380, 16384, 65535, 65536, 3 * MIB, 7, 40 * MIB, 0, 12]
    sent = [bytes([n]) * size for n, size in enumerate(sizes)]
    far = Far()
    async with grpcio(echo) as (port, _):
        stream = await far.connect(port)
        for message in sent:
            stream.send(message)
        await eventually(lambda: far.ends or len(far.messages) == len(sent), 30)
        assert far.messages == sent
        # More than any window in small messages: windows are topped up both ways.
        far.messages.clear()
        for number in range(3000):
            stream.send(b"%d" % number * 2000)
        await eventually(lambda: far.ends or len(far.messages) == 3000, 30)
        assert far.messages == [b"%d" % number * 2000 for number in range(3000)]
        stream.close()
    assert far.ends == ["closed"]


async def test_a_server_that_reads_late_holds_the_rest_here() -> None:
    read = asyncio.Event()

    async def late(frames: AsyncIterator[bytes], context: Any) -> None:
        await read.wait()
        await echo(frames, context)

    far = Far()
    async with grpcio(late) as (port, _):
        stream = await far.connect(port)
        for _ in range(30):
            stream.send(b"x" * MIB)
        await asyncio.sleep(0.3)
        assert stream.waiting_bytes > 10 * MIB
        read.set()
        await eventually(lambda: len(far.messages) == 30, 30)
        assert stream.waiting_bytes == 0
        stream.close()


async def test_a_refusal_says_why() -> None:
    async def refuse(frames: AsyncIterator[bytes], context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not this pool")

    far = Far()
    async with grpcio(refuse) as (port, _):
        await far.connect(port)
        await eventually(lambda: far.ends)
    assert far.ends == ["the call ended with HTTP 200, gRPC status 9 not this pool"]


async def test_a_call_that_the_server_ends() -> None:
    async def once(frames: AsyncIterator[bytes], context: Any) -> None:
        await context.write(await anext(frames))

    far = Far()
    async with grpcio(once) as (port, _):
        stream = await far.connect(port)
        stream.send(b"hello")
        await eventually(lambda: far.ends)
    assert far.messages == [b"hello"]
    assert len(far.ends) == 1


async def test_a_server_that_stops_lets_the_stream_finish() -> None:
    far = Far()
    async with grpcio(echo) as (port, server):
        stream = await far.connect(port)
        stream.send(b"before")
        await eventually(lambda: far.messages)
        stopping = asyncio.create_task(server.stop(grace=20))
        await asyncio.sleep(0.2)
        stream.send(b"after")
        await eventually(lambda: far.messages == [b"before", b"after"])
        assert not far.ends
        stream.close()
        await stopping


async def test_a_server_that_is_not_there_any_more() -> None:
    far = Far()
    async with grpcio(echo) as (port, server):
        await far.connect(port)
        await server.stop(0)
        await eventually(lambda: far.ends)
    assert len(far.ends) == 1


async def test_keepalive_satisfies_the_server_and_the_client() -> None:
    far = Far()
    async with grpcio(echo, keepalive_time_ms=50, keepalive_timeout_ms=500, **PINGS_ALLOWED) as (port, _):
        stream = await far.connect(port, keepalive_s=0.05)
        await asyncio.sleep(0.6)
        assert not far.ends
        stream.send(b"still here")
        await eventually(lambda: far.messages)
        stream.close()


async def test_a_pause_of_this_process_is_no_silence_of_the_other() -> None:
    far = Far()
    async with grpcio(echo, **PINGS_ALLOWED) as (port, _):
        stream = await far.connect(port, keepalive_s=0.05)
        await asyncio.sleep(0.06)
        time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still, as under SIGSTOP
        await asyncio.sleep(0.2)
        assert not far.ends
        stream.close()


# Another end


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[int, bytearray]]:
    """A server that answers with these bytes, whatever it reads."""
    got = bytearray()
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for answer in answers:
                writer.write(answer)
                await writer.drain()
            while data := await reader.read(65536):
                got.extend(data)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(30):
            yield server.sockets[0].getsockname()[1], got
            await served.wait()
    finally:
        server.close()


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def data(*messages: bytes, flags: int = 0) -> bytes:
    return frame(0, b"".join(b"\0" + len(m).to_bytes(4, "big") + m for m in messages), flags, 1)


SETTINGS = frame(4)
HEAD = frame(1, b"\x88", 4, 1)  # :status 200


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (frame(4, b"12345"), "odd size"),
        (frame(4, b"\0\4\xff\xff\xff\xff"), "larger than there is"),
        (frame(4, b"\0\5\0\0\0\1"), "not allowed"),
        (frame(6, b"1234"), "eight bytes"),
        (frame(3, b"\0\0\0\7", 0, 1), "reset with code 7"),
        (frame(7, b"\0\0\0\1\0\0\0\2"), "went away with code 2"),
        (frame(7, b"\0\0\0\0\0\0\0\0"), "went away with code 0"),
        (frame(5, b"\0\0\0\2", 4, 1), "push"),
        (frame(8, b"\x7f\xff\xff\xff"), "beyond what there is"),
        (frame(9, b"\x88", 4, 1), "did not begin"),
        (frame(1, b"\x88", 0, 1) + SETTINGS, "interrupted"),
        (frame(1, b"\xff\xff\xff\xff\xff\xff", 4, 1), "cannot be read"),
        (frame(1, b"\x8d", 4, 1), "HTTP 404"),
        (frame(1, b"\x88", 0, 1) + frame(9, b"\x88" * 16000, 0, 1) * 5, "too large"),
        (frame(0, b"\1\0\0\0\1x", 0, 1), "compressed"),
        (frame(0, b"\0\xff\xff\xff\xff", 0, 1), "too large"),
        (frame(0, b"\x09abc", 8, 1), "padding"),
        (frame(0, b"", 1, 1), "ended the stream"),
        (b"\xff\xff\xff\0\0\0\0\0\1", "larger than was agreed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "larger than was agreed"),
    ],
    ids=range(20),
)
async def test_a_broken_rule_ends_the_stream(said: bytes, why: str) -> None:
    far = Far()
    async with scripted(SETTINGS, said) as (port, _):
        stream = await far.connect(port)
        await eventually(lambda: far.ends)
        stream.send(b"into the void")
    [reason] = far.ends
    assert why in reason


async def test_padding_priority_and_unknown_frames() -> None:
    far = Far()
    padded = frame(0, b"\x03" + b"\0\0\0\0\2hi" + b"\0\0\0", 8, 1)
    prioritised = frame(1, b"\0\0\0\0\x10\x88", 4 | 0x20, 1)
    async with scripted(SETTINGS, prioritised, frame(0xBE, b"who knows"), padded) as (port, got):
        stream = await far.connect(port)
        await eventually(lambda: far.messages)
        assert far.messages == [b"hi"]
        assert got.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await eventually(lambda: frame(4, b"", 1) in got)
        stream.close()


async def test_a_ping_is_answered() -> None:
    far = Far()
    async with scripted(SETTINGS, frame(6, b"12345678")) as (port, got):
        stream = await far.connect(port)
        await eventually(lambda: frame(6, b"12345678", 1) in got)
        stream.close()


async def test_silence_ends_the_stream() -> None:
    far = Far()
    async with scripted() as (port, _):
        await far.connect(port, keepalive_s=0.05)
        await eventually(lambda: far.ends)
    assert far.ends == ["the other end gives no sign of life"]


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=8),
    st.lists(st.integers(1, 50), max_size=10),
    st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_messages_do_not_depend_on_how_they_are_cut(
    messages: list[bytes], cuts: list[int], frame_bytes: int
) -> None:
    raw = b"".join(b"\0" + len(m).to_bytes(4, "big") + m for m in messages)
    framed = b"".join(frame(0, raw[i : i + frame_bytes], 0, 1) for i in range(0, len(raw), frame_bytes))

    async def body() -> list[bytes]:
        got: list[bytes] = []
        stream = GrpcStream(METHOD, "a", got.append, pytest.fail, 60.0)
        rest = SETTINGS + HEAD + framed
        for cut in cuts:
            stream.data_received(rest[:cut])
            rest = rest[cut:]
        stream.data_received(rest)
        return got

    assert asyncio.run(body()) == messages


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_it(junk: bytes) -> None:
    async def body() -> None:
        ends: list[str] = []
        stream = GrpcStream(METHOD, "a", lambda message: None, ends.append, 60.0)
        stream.data_received(SETTINGS + junk)
        stream.close()
        assert len(ends) == 1

    asyncio.run(body())
