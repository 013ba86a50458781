"""What an exchange passes on by itself and what it keeps for the flight: in order, each byte once."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.exchange import WELL_UNDER_WAY, Exchange
from dualmap_wire.v1 import worker_pb2 as pb


class Session:
    """What an exchange tells its session."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def cancel(self, stream: int) -> None:
        self.told.append("cancel")

    def forget(self, stream: int) -> None:
        self.told.append("forget")


class Client:
    """Takes chunks unless it is full."""

    def __init__(self) -> None:
        self.full = False
        self.got: list[bytes] = []

    def take(self, chunk: bytes) -> bool:
        if not self.full:
            self.got.append(chunk)
        return not self.full


def made(max_bytes: float = 1000.0) -> tuple[Exchange, Session, Client]:
    session, client = Session(), Client()
    exchange = Exchange(session, 1, max_bytes)  # type: ignore[arg-type]
    exchange.relay = client.take
    return exchange, session, client


def feed(exchange: Exchange, *chunks: bytes) -> None:
    for chunk in chunks:
        exchange.feed(pb.Event(stream=1, data=chunk))


async def test_what_a_frame_has_for_a_stream_leaves_in_one_piece_and_wakes_nobody() -> None:
    exchange, _, client = made()
    waiting = asyncio.ensure_future(exchange.next())
    await asyncio.sleep(0)
    feed(exchange, b"a", b"b")
    exchange.stir()
    await asyncio.sleep(0)
    assert client.got == [b"ab"]
    assert not waiting.done()
    feed(exchange, b"c")
    exchange.feed(pb.Event(stream=1, end=pb.End(output_tokens=3)))
    exchange.stir()
    kind, end = await waiting or ("", None)
    assert (kind, end.output_tokens, client.got) == ("end", 3, [b"ab", b"c"])
    assert exchange.ended


async def test_a_head_is_looked_at_before_what_follows_it() -> None:
    exchange, _, client = made()
    exchange.feed(pb.Event(stream=1, head=pb.Head(status=200)))
    feed(exchange, b"a")
    exchange.stir()
    assert not client.got
    assert [await exchange.next(), await exchange.next()] == [("head", pb.Head(status=200)), ("data", b"a")]


async def test_it_says_once_when_it_is_well_under_way() -> None:
    exchange, _, _ = made()
    told: list[int] = []
    exchange.under_way = lambda: told.append(exchange.pieces)
    for _ in range(3 * WELL_UNDER_WAY):
        feed(exchange, b"a")
        exchange.stir()
    assert told == [WELL_UNDER_WAY]


async def test_what_nobody_takes_ends_the_exchange_at_its_bound() -> None:
    exchange, session, client = made(10.0)
    client.full = True
    for _ in range(3):
        feed(exchange, b"1234")
        exchange.stir()
    assert exchange.overflowed
    assert session.told == ["cancel"]


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.binary(min_size=1, max_size=3), max_size=3), st.booleans()))
)
def test_no_byte_is_lost_doubled_or_out_of_order(
    turns: list[tuple[bool, list[bytes], bool]],
) -> None:
    async def body() -> None:
        exchange, _, client = made(1e9)
        sent = b""
        for full, chunks, reads in turns:
            client.full = full
            feed(exchange, *chunks)
            exchange.stir()
            sent += b"".join(chunks)
            while reads and (chunk := exchange.more_data()) is not None:
                client.got.append(chunk)
        while (chunk := exchange.more_data()) is not None:
            client.got.append(chunk)
        assert b"".join(client.got) == sent

    asyncio.run(body())
