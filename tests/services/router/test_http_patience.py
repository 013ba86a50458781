"""What a client can make the HTTP server hold, and for how long."""

import asyncio
import contextlib
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dualmap_router import http_phase
from dualmap_router.door import Door, KeyDoor
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_room import BodyRoom
from dualmap_router.key_watch import KeyWatch

from ...waiting import eventually
from .keys_file import entry, write
from .serving import LIMITS, Client, chunked, echo, error_of, get, post, serving

ONE, OTHER = "the-key-of-one", "the-key-of-the-other"


@pytest.fixture
def door(tmp_path: Path) -> Door:
    """A door with the keys of two tenants."""
    keys = (entry(ONE, tenant="one"), entry(OTHER, tenant="other"))
    return KeyDoor(KeyWatch(str(write(tmp_path / "keys.json", *keys))), lambda why: None)


class Held:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        await self.release.wait()
        await echo(request, response)


async def drip(client: Client, drop: bytes) -> None:
    """Send drop by drop until the connection has ended."""
    with contextlib.suppress(ConnectionError):
        while not client.reader.at_eof():
            await client.send(drop)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "asked",
    [
        get("/healthz", "content-length: 1000000") + b"x" * 999_999,
        get("/metrics", "content-length: 1") + b"x",
        chunked(b"x" * 1000).replace(b"POST /x", b"GET /readyz"),
    ],
    ids=["most of a large body", "a byte", "chunks"],
)
async def test_nobody_has_a_body(door: Door, asked: bytes) -> None:
    async with serving(enter=door.enter) as served, served.client() as client:
        status, headers, body = await client.ask(asked)
        assert (status, headers["connection"], error_of(body)["code"]) == (413, "close", "body_too_large")
        assert served.server.room.held_bytes == 0


async def test_an_empty_body_is_none(door: Door) -> None:
    async with serving(enter=door.enter) as served, served.client() as client:
        assert (await client.ask(get("/healthz", "content-length: 0")))[0] == 200


async def test_what_came_early_is_no_credit_for_silence() -> None:
    limits = replace(LIMITS, body_s=0.2)
    async with asyncio.timeout(20), serving(limits=limits) as served, served.client() as client:
        status, _, body = await client.ask(post(b"x" * 900_000)[:-1])
        assert (status, error_of(body)["code"]) == (408, "request_timeout")
        assert served.server.room.held_bytes == 0


async def test_drops_do_not_keep_a_body() -> None:
    limits = replace(LIMITS, body_s=0.2)
    async with asyncio.timeout(20), serving(limits=limits) as served, served.client() as client:
        await client.send(post(b"x" * 900_000)[:-100_000])
        dripping = asyncio.create_task(drip(client, b"x"))
        assert (await client.answer())[0] == 408
        assert served.server.room.held_bytes == 0
        dripping.cancel()


async def test_a_body_behind_a_long_answer_is_timed_too() -> None:
    held = Held()
    async with (
        asyncio.timeout(20),
        serving(held, replace(LIMITS, body_s=0.2)) as served,
        served.client() as client,
    ):
        await client.send(get("/slow") + post(b"x" * 1000)[:-1])
        await eventually(lambda: served.server.room.held_bytes == 999)
        await eventually(lambda: served.server.room.held_bytes == 0)
        held.release.set()
        assert [(await client.answer())[0] for _ in range(2)] == [200, 408]
        assert await client.at_end()


async def test_who_waits_for_its_turn_is_not_timed() -> None:
    held = Held()
    limits = replace(LIMITS, head_s=0.1, body_s=0.1)
    async with serving(held, limits) as served, served.client() as client:
        # The second is complete, so nothing more is read until it is its turn: the third cannot come on.
        third = post(b"third")
        await client.send(get("/first") + post(b"second") + third[:-2])
        now_s = asyncio.get_running_loop().time()
        for connection in list(served.server.connections):
            connection.check(now_s + 60.0)
        held.release.set()
        assert [(await client.answer())[2] for _ in range(2)] == [b"GET /first ", b"POST /x second"]
        assert (await client.ask(third[-2:]))[2] == b"POST /x third"


async def test_a_tenant_leaves_room_for_others(door: Door) -> None:
    held = Held()
    body = b"x" * 100_000
    async with (
        serving(held, replace(LIMITS, max_held_bytes=300_000), door.enter) as served,
        served.client() as first,
        served.client() as second,
        served.client() as third,
    ):
        await first.send(post(body, f"x-api-key: {ONE}"))
        await eventually(lambda: served.server.room.held_bytes == 100_000)
        status, headers, said = await second.ask(post(body, f"x-api-key: {ONE}"))
        assert (status, headers["retry-after"], error_of(said)["code"]) == (429, "1", "overloaded")
        await third.send(post(body, f"x-api-key: {OTHER}"))
        await eventually(lambda: served.server.room.held_bytes == 200_000)
        held.release.set()
        assert [(await client.answer())[0] for client in (first, third)] == [200, 200]
        assert served.server.room.held_bytes == 0
        # What was given back can be had again.
        assert (await first.ask(post(body, f"x-api-key: {ONE}")))[0] == 200


def test_where_nobody_says_who_he_is_there_is_one_limit() -> None:
    room = BodyRoom(100)
    assert room.take("", 100)
    assert not room.take("", 1)
    room.give_back("", 101)
    assert room.held_bytes == 0


@pytest.mark.parametrize("drop", [b"x", b"\r\n"])
async def test_a_refusal_is_not_lingered_behind_for_ever(
    monkeypatch: pytest.MonkeyPatch, drop: bytes
) -> None:
    monkeypatch.setattr(http_phase, "_LINGER_S", 1.0)
    monkeypatch.setattr(http_phase, "_LINGER_MOST_S", 2.0)
    async with asyncio.timeout(20), serving() as served, served.client() as client:
        assert (await client.ask(b"x\r\n"))[0] == 400
        dripping = asyncio.create_task(drip(client, drop))
        await eventually(lambda: not served.server.connections)
        dripping.cancel()


async def test_a_refused_body_is_let_go_whatever_comes_behind_it() -> None:
    async with serving(limits=replace(LIMITS, max_body_bytes=1000)) as served, served.client() as client:
        await client.send(chunked(b"x" * 2000) + get("/next")[:10])
        assert (await client.answer())[0] == 413
        assert served.server.room.held_bytes == 0


async def test_thousands_of_upgrades_at_once() -> None:
    upgrade = get("/x", "connection: upgrade", "upgrade: a")
    async with serving() as served, served.client() as client:
        await client.send(upgrade * 2000)
        for _ in range(2000):
            assert (await client.answer())[2] == b"GET /x "


async def test_what_else_a_connection_header_says_holds_beside_an_upgrade() -> None:
    seen: list[str | None] = []

    async def keep(request: HttpRequest, response: HttpResponse) -> None:
        seen.append(request.get("connection"))
        await echo(request, response)

    async with serving(keep) as served, served.client() as client:
        await client.ask(get("/x", "connection: Upgrade, x-mine", "upgrade: websocket", "x-mine: a"))
        _, headers, _ = await client.ask(get("/x", "connection: close, upgrade", "upgrade: websocket"))
        assert headers["connection"] == "close"
        assert await client.at_end()
    assert [[token.strip() for token in (value or "").split(",")] for value in seen] == [
        ["x-mine"],
        ["close"],
    ]


async def test_who_waits_to_be_told_is_told_once() -> None:
    async with serving() as served, served.client() as client:
        asked = post(b"abc", "expect: 100-continue", "connection: upgrade", "upgrade: h2c")
        await client.send(asked[:-3])
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"abc"))[2] == b"POST /x abc"


BIG = b"x" * (24 << 20)
"""More than what two sockets hold."""


async def big(request: HttpRequest, response: HttpResponse) -> None:
    response.send(200, [], BIG)


async def _read_slowly(client: Client, pause_s: float) -> int:
    """How many bytes of the answer came, in a dozen steps."""
    num = 0
    while data := await client.reader.read(2 << 20):
        num += len(data)
        await asyncio.sleep(pause_s)
    return num


async def test_a_client_that_is_let_go_may_read_its_answer_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_phase, "_LINGER_S", 0.1)
    async with serving(big) as served, served.client() as client:
        await client.send(get("/", "connection: close"))
        assert await _read_slowly(client, 0.25) > len(BIG)


async def test_who_reads_nothing_of_it_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_phase, "_LINGER_S", 0.1)
    async with serving(big, replace(LIMITS, stall_s=1.0)) as served, served.client() as client:
        await client.send(get("/", "connection: close"))
        await eventually(lambda: served.server.connections)
        await eventually(lambda: not served.server.connections)


async def test_a_server_that_stops_lets_its_last_answers_leave() -> None:
    async with serving(big) as served, served.client() as client:
        await client.send(get("/"))
        await eventually(lambda: any(one.unsent_bytes for one in served.server.connections))
        reading = asyncio.create_task(_read_slowly(client, 0.05))
        await served.server.stop()
        assert await reading > len(BIG)


def _sleep() -> None:
    """Nothing else of this process runs meanwhile."""
    time.sleep(4.0)


async def test_a_process_that_slept_blames_no_client_for_it() -> None:
    """As after SIGSTOP: the sweep comes before what waits in the sockets."""
    async with serving(limits=replace(LIMITS, head_s=1.0)) as served:

        def ask() -> bytes:
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\n")
                half_way.wait()
                client.sendall(b"host: x\r\nconnection: close\r\n\r\n")
                return client.recv(12)

        half_way = threading.Event()
        asking = asyncio.create_task(asyncio.to_thread(ask))
        await eventually(lambda: served.server.connections)
        await asyncio.sleep(0.1)
        half_way.set()
        _sleep()
        assert await asking == b"HTTP/1.1 200"
