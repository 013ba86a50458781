"""The embedded store: a real server that starts, freezes, dies and comes back, and never outlives its parent."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest
import redis
import redis.asyncio

from dualmap_sim import embedded_store
from dualmap_sim.embedded_store import EmbeddedStore, StoreError

PARENT = """
import asyncio, sys
from dualmap_sim.embedded_store import EmbeddedStore

async def main():
    async with EmbeddedStore() as store:
        print(store.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - processes have no event to wait for
            await asyncio.sleep(0.01)


async def test_answers_while_entered_and_leaves_nothing() -> None:
    async with EmbeddedStore() as store:
        async with redis.asyncio.from_url(store.url) as client:
            assert await client.ping()
            assert (await client.info("server"))["process_id"] == store.pid
            assert (await client.config_get("save"))["save"] == ""
            assert (await client.config_get("appendonly"))["appendonly"] == "no"
            folder = str((await client.config_get("dir"))["dir"])
        pid, port = store.pid, store.port
        assert await asyncio.to_thread(os.path.isdir, folder)
    assert not await asyncio.to_thread(os.path.exists, folder)
    assert not alive(pid)
    assert not store.running
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


async def test_listens_on_loopback_only() -> None:
    async with EmbeddedStore() as store:
        listening = {c.laddr.ip for c in psutil.Process(store.pid).net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


async def test_paused_store_is_silent_until_resumed() -> None:
    async with (
        EmbeddedStore() as store,
        redis.asyncio.from_url(store.url, socket_timeout=0.1, retry=None) as client,
    ):
        await client.set("k", "v")
        store.pause()
        with pytest.raises(redis.TimeoutError):
            await client.ping()
        store.resume()
        assert await client.get("k") == b"v"


async def test_killed_store_restarts_empty_on_its_port() -> None:
    async with EmbeddedStore() as store:
        first_pid, url = store.pid, store.url
        async with redis.asyncio.from_url(url, retry=None) as client:
            await client.set("k", "v")
            store.kill()
            assert not store.running
            with pytest.raises(redis.ConnectionError):
                await client.ping()
            await store.restart()
            assert store.url == url
            assert store.pid != first_pid
            assert await client.get("k") is None


async def test_restart_ends_a_paused_server() -> None:
    async with EmbeddedStore() as store:
        store.pause()
        first_pid = store.pid
        await store.restart()
        assert not alive(first_pid)


async def test_a_taken_port_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedStore() as other:
        free = embedded_store.free_ports
        ports = iter([other.port])
        monkeypatch.setattr(embedded_store, "free_ports", lambda: next(ports, None) or free())
        # The other store answers on the contested port: that must not pass for this one.
        async with EmbeddedStore() as store:
            assert store.port != other.port
            assert store.running


async def test_a_failed_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedStore() as other:
        monkeypatch.setattr(embedded_store, "free_ports", lambda: other.port)
        store = EmbeddedStore()
        with pytest.raises(StoreError, match="Address already in use"):
            await store.start()
        assert not store.running


async def test_use_before_start_is_an_error() -> None:
    store = EmbeddedStore()
    assert not store.running
    with pytest.raises(StoreError, match="not started"):
        store.pause()
    with pytest.raises(StoreError, match="not started"):
        await store.restart()
    await store.stop()


async def test_dies_with_a_killed_parent() -> None:
    # The child is tied to the thread that starts it, so the parent must be a process of its own.
    parent = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    )
    pid = 0
    try:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert alive(pid)
        parent.kill()
        await until(lambda: not alive(pid))
    finally:
        parent.kill()
        parent.communicate()
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)


async def test_the_fixture_gives_an_empty_store(store: EmbeddedStore) -> None:
    async with redis.asyncio.from_url(store.url) as client:
        assert await client.dbsize() == 0
        assert await client.function_list() == []
        await client.set("left", "over")


async def test_the_fixture_flushes_between_tests(store: EmbeddedStore) -> None:
    async with redis.asyncio.from_url(store.url) as client:
        assert await client.get("left") is None
        # The fixture's teardown brings it back.
        store.kill()
