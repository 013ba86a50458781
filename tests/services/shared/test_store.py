"""The store's connection against a real Valkey that is frozen, killed, restarted and emptied."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest
import uvloop
from redis.asyncio.connection import Connection

from dualmap_service.access import AccessSettings
from dualmap_service.errors import StoreError, StoreUnavailableError
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import library
from dualmap_wire.redis_keys import PoolKeys

from ...waiting import eventually

KEYS = PoolKeys("p")


@pytest.fixture
async def shared(store: EmbeddedStore) -> AsyncIterator[Store]:
    connection = Store(AccessSettings(redis_url=store.url), "test", deadline_s=0.2)
    assert await connection.start()
    yield connection
    await connection.close()


async def works(shared: Store) -> bool:
    try:
        return bool(await shared.function("members", KEYS.prefix, "", 3000))
    except StoreError:
        return False


async def test_calls_pipeline_and_keep_their_order(shared: Store) -> None:
    calls = [shared.command("INCR", "n") for _ in range(500)]
    assert [await call for call in calls] == list(range(1, 501))
    assert await shared.command("SET", "k", b"\x00\xff") == b"OK"
    assert await shared.command("GET", "k") == b"\x00\xff"


async def test_an_error_is_one_calls_only(shared: Store) -> None:
    calls = [shared.command("SET", "k", 1), shared.command("LPUSH", "k", 1), shared.command("GET", "k")]
    assert await calls[0] == b"OK"
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await calls[1]
    assert await calls[2] == b"1"
    assert shared.available


async def test_a_deadline(shared: Store, store: EmbeddedStore) -> None:
    store.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="in time"):
        await shared.command("GET", "k", deadline_s=0.02)
    assert time.monotonic() - started < 2.0
    store.resume()
    # The late reply is nobody's: the next call gets its own.
    assert await shared.command("INCR", "n", deadline_s=5.0) == 1


async def test_the_breaker_opens_and_closes(shared: Store, store: EmbeddedStore) -> None:
    store.pause()
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            await shared.command("GET", "k", deadline_s=0.01)
    assert not shared.available
    # Open: nothing is sent, so a frozen server costs nobody a deadline.
    call = shared.command("GET", "k", deadline_s=60.0)
    assert call.done()
    assert isinstance(call.exception(), StoreUnavailableError)
    store.resume()
    await eventually(lambda: shared.available)
    assert await shared.command("SET", "k", 1) == b"OK"


async def test_a_call_that_is_given_up_disturbs_no_other(shared: Store) -> None:
    first, second = shared.command("INCR", "n"), shared.command("INCR", "n")
    first.cancel()
    assert await second == 2


async def test_killed_and_restarted(shared: Store, store: EmbeddedStore) -> None:
    reconnected = asyncio.Event()
    shared.on_connect.append(reconnected.set)
    assert await works(shared)
    store.kill()
    await eventually(lambda: not shared.available)
    with pytest.raises(StoreUnavailableError):
        await shared.command("GET", "k")
    await store.restart()
    async with asyncio.timeout(10):
        await reconnected.wait()
    # The new server is empty: the library was loaded again.
    assert await works(shared)


async def test_what_is_under_way_when_it_dies_fails(shared: Store, store: EmbeddedStore) -> None:
    store.pause()
    calls = [shared.command("GET", "k", deadline_s=60.0) for _ in range(10)]
    await asyncio.sleep(0)
    store.kill()
    for call in calls:
        with pytest.raises(StoreUnavailableError, match="lost"):
            async with asyncio.timeout(10):
                await call


async def test_a_library_that_is_flushed_comes_back(shared: Store) -> None:
    assert await works(shared)
    await shared.command("FUNCTION", "FLUSH")
    with pytest.raises(StoreError):
        await shared.function("members", KEYS.prefix, "", 3000)
    await eventually(lambda: works(shared))


async def test_the_library_of_another_release_stays(shared: Store, store: EmbeddedStore) -> None:
    other = "#!lua name=dualmap_other\nredis.register_function('f', function() return 1 end)"
    await shared.command("FUNCTION", "LOAD", other)
    second = Store(AccessSettings(redis_url=store.url), "second")
    assert await second.start()
    listed = await second.command("FUNCTION", "LIST")
    await second.close()
    assert {entry[1] for entry in listed} == {b"dualmap_other", f"dualmap_{library()[0]}".encode()}


async def test_it_starts_without_a_store_and_finds_it_later(store: EmbeddedStore) -> None:
    store.kill()
    connection = Store(AccessSettings(redis_url=store.url), "test")
    try:
        assert not await connection.start(wait_s=0.1)
        with pytest.raises(StoreUnavailableError):
            await connection.command("PING")
        await store.restart()
        await eventually(lambda: works(connection))
    finally:
        await connection.close()


async def test_posts_are_lost_in_silence(shared: Store, store: EmbeddedStore) -> None:
    store.kill()
    await eventually(lambda: not shared.available)
    shared.post("release", KEYS.prefix, "r", "1")
    await store.restart()
    await eventually(lambda: works(shared))


async def test_a_connection_that_falls_silent_while_the_last_one_is_still_asked(store: EmbeddedStore) -> None:
    shared = Store(AccessSettings(redis_url=store.url), "test", deadline_s=5.0)
    assert await shared.start()

    async def until_silent() -> None:
        store.pause()
        while shared.available:
            with contextlib.suppress(StoreUnavailableError):
                await shared.command("GET", "k", deadline_s=0.005)

    try:
        await until_silent()
        store.kill()
        await store.restart()
        await eventually(lambda: shared.available)
        await until_silent()
        store.resume()
        await eventually(lambda: works(shared), 4.0)
    finally:
        await shared.close()


async def test_a_connection_that_fails_in_an_unforeseen_way_is_tried_again(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop raises RuntimeError where redis-py writes to what was closed under its feet."""
    failures = 3
    connect = Connection.connect

    async def fail_first(self: Connection) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("unable to perform operation; the handler is closed")
        await connect(self)

    monkeypatch.setattr(Connection, "connect", fail_first)
    client = Store(AccessSettings(redis_url=store.url), "test")
    try:
        assert await client.start()
        assert failures < 0
    finally:
        await client.close()


def test_connections_that_break_while_they_are_made(store: EmbeddedStore) -> None:
    """On uvloop, as in the services: it raises RuntimeError on what was closed under its feet."""

    async def body() -> None:
        seen = 0

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            seen += 1
            if seen <= 7:
                # Reset in the middle of the handshake, at another point each time.
                for _ in range(seen // 4):
                    await reader.read(65536)
                    writer.write(b"+OK\r\n")
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", store.port)
            await asyncio.gather(relay(reader, behind), relay(behind_reader, writer))

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
        client = Store(
            AccessSettings(redis_url=f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0"), "test"
        )
        try:
            assert await client.start(wait_s=30.0)
            assert seen > 7
            assert await client.command("PING") == b"PONG"
        finally:
            await client.close()
            proxy.close()

    uvloop.run(body())


async def test_a_connection_that_goes_silent_is_replaced(store: EmbeddedStore) -> None:
    """As after a lost host: nothing comes back, nothing is closed, and a new connection would work."""
    relays: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []
    silent = asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mute: bool) -> None:
        while data := await reader.read(65536):
            if not (mute and silent.is_set()):
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mute = not relays
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", store.port)
        writers.extend((writer, behind_writer))
        relays.append(asyncio.create_task(relay(reader, behind_writer, mute)))
        relays.append(asyncio.create_task(relay(behind_reader, writer, mute)))

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    client = Store(AccessSettings(redis_url=f"redis://127.0.0.1:{port}/0"), "test", deadline_s=0.2)
    try:
        assert await client.start()
        assert await client.command("PING") == b"PONG"
        silent.set()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(StoreUnavailableError):
                    if await client.command("PING") == b"PONG":
                        break
                await asyncio.sleep(0.05)
        assert len(relays) >= 4
    finally:
        await client.close()
        proxy.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
