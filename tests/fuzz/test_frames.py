"""A worker that says anything at all: the session ends cleanly or goes on, and gives back what was on it."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.exchange import Arrived, Exchange
from dualmap_router.grpc_stream import GrpcStream
from dualmap_router.sessions import Session
from dualmap_service.grpc_access import PlainGrpc
from dualmap_wire.v1 import worker_pb2 as pb

from .memory_net import Link, MemoryLoop
from .strategies import cuts, damaged

LAST = {"end", "moved", "failed"}


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


EVENTS = st.builds(
    pb.Event,
    stream=st.integers(0, 4),
) | st.tuples(
    st.integers(0, 4),
    st.sampled_from(
        [
            pb.Event(head=pb.Head(status=200)),
            pb.Event(data=b"text"),
            pb.Event(end=pb.End(prompt_tokens=3)),
            pb.Event(moved=pb.Moved(target="b")),
            pb.Event(failed=pb.Failed(kind=pb.Failed.DRAINING)),
            pb.Event(prefilled=pb.Prefilled()),
        ]
    ),
).map(lambda pair: _on(*pair))


def _on(stream: int, what: pb.Event) -> pb.Event:
    event = pb.Event(stream=stream)
    event.MergeFrom(what)
    return event


WORKER_FRAMES = st.lists(EVENTS, max_size=4).map(
    lambda events: pb.WorkerFrame(events=events).SerializeToString()
)
MESSAGES = WORKER_FRAMES | WORKER_FRAMES.flatmap(damaged) | st.binary(max_size=40)
HEADS = st.sampled_from(
    [b"\x88", b"\x8d", b"\x3f\xe1\xff\x03", b"\xff\xff\xff\xff\xff", b"\x40\x01a\x01b", b""]
)
PAYLOADS = st.one_of(
    MESSAGES.map(message),
    st.lists(MESSAGES.map(message), max_size=3).map(b"".join).flatmap(damaged),
    HEADS,
    st.sampled_from([b"\0\4\0\0\0\x08", b"\0\5\0\0\x40\0", b"\0\0\0\1", b"\x7f\xff\xff\xff", bytes(8)]),
    st.binary(max_size=30),
)
FRAMES = st.builds(
    frame,
    st.sampled_from([0, 0, 0, 1, 3, 4, 5, 6, 7, 8, 9, 0xBE]),
    st.sampled_from([0, 0, 0, 1, 4, 5, 8, 0x2C, 0xFF]),
    st.sampled_from([0, 1, 1, 3, 2**31 - 1]),
    PAYLOADS,
)
SAYINGS = st.lists(FRAMES, max_size=8).map(b"".join)
SAID = SAYINGS | SAYINGS.flatmap(damaged)


def heard(pieces: list[bytes]) -> tuple[list[bytes], list[str]]:
    """The messages and the end of a stream of these pieces."""

    async def body() -> tuple[list[bytes], list[str]]:
        got: list[bytes] = []
        ends: list[str] = []

        def take(data: bytes) -> None:
            assert not ends
            got.append(data)

        stream = GrpcStream("/a/b", "a", take, ends.append, 60.0)
        for piece in pieces:
            if not ends:
                stream.data_received(piece)
        stream.close()
        return got, ends

    return asyncio.run(body())


@given(SAID, st.data())
def test_a_stream_is_the_same_however_it_is_cut(said: bytes, data: st.DataObject) -> None:
    whole = heard([frame(4, 0, 0, b""), said])
    assert len(whole[1]) == 1
    assert heard([frame(4, 0, 0, b""), *data.draw(cuts(said))]) == whole


class Babbler:
    """A worker that says hello and then what it is told to."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    async def Session(self, frames: object, context: object) -> None:  # noqa: N802
        await context.write(pb.WorkerFrame())  # type: ignore[attr-defined]
        await asyncio.Event().wait()


@given(
    st.lists(SAID | MESSAGES.map(lambda data: frame(0, 0, 1, message(data))), max_size=4), st.integers(1, 40)
)
def test_a_session_gives_back_what_was_on_it(said: list[bytes], cut: int) -> None:
    loop = MemoryLoop([cut])
    loop.hosts[1] = Babbler()  # type: ignore[assignment]
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))

    async def read(exchange: Exchange) -> list[Arrived]:
        arrived: list[Arrived] = []
        while (event := await exchange.next()) is not None:
            arrived.append(event)
        return arrived

    async def body() -> None:
        session = Session("a", "h:1", pb.Hello(router="r", pool="p"), 1 << 16, lambda: None, PlainGrpc())
        await asyncio.sleep(0.01)
        assert session.connected
        reads = [asyncio.ensure_future(read(session.submit(pb.Submit(request_id=f"r{n}")))) for n in range(3)]
        await asyncio.sleep(0)
        [link] = loop.links
        for saying in said:
            link._send(saying)
            await asyncio.sleep(0.01)
        link.abort()
        await asyncio.sleep(0.01)
        for arrived in [await asyncio.wait_for(reading, 1) for reading in reads]:
            kinds = [kind for kind, _ in arrived]
            assert kinds[-1] in LAST
            assert not LAST & set(kinds[:-1])
        assert len(session) == 0
        # It connects again, and serves.
        await asyncio.sleep(3.0)
        assert session.connected
        await session.close()
        for left in list(loop.links):
            left.abort()
        await asyncio.sleep(0.01)

    loop.run_until_complete(body())
    loop.close()
    assert not faults, faults
