"""How often the store is tried that lets nobody in, or hangs up on everybody."""

import logging
import socket
from itertools import pairwise

import pytest

from dualmap_service.access import AccessSettings
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore

from ...waiting import eventually


async def test_who_finds_no_server_tries_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        connection = Store(AccessSettings(redis_url=f"redis://127.0.0.1:{closed.getsockname()[1]}/0"), "test")
        try:
            await connection.start(wait_s=0.0)
            await eventually(lambda: len(_times(caplog, "store.unreachable")) > 5)
        finally:
            await connection.close()
    assert _are_ever_longer(_times(caplog, "store.unreachable"))


async def test_who_is_let_in_and_hung_up_on_tries_ever_more_rarely(
    store: EmbeddedStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    connection = Store(AccessSettings(redis_url=store.url), "test")

    def hang_up() -> None:
        assert connection._pipeline is not None
        connection._pipeline.close()

    connection.on_connect.append(hang_up)
    try:
        await connection.start()
        await eventually(lambda: len(_times(caplog, "store.connected")) > 5)
        assert _are_ever_longer(_times(caplog, "store.connected"))
        connection.on_connect.clear()
        await eventually(lambda: connection.available)
        assert await connection.command("PING") == b"PONG"
    finally:
        await connection.close()


def _times(caplog: pytest.LogCaptureFixture, event: str) -> list[float]:
    return [record.created for record in caplog.records if record.getMessage() == event]


def _are_ever_longer(times: list[float]) -> bool:
    """Pauses of 25 to 50 ms, twice that, and so on; a busy machine makes them longer only."""
    pauses = [after - before for before, after in pairwise(times)]
    return all(pause_s > 0.025 * 2**number - 0.002 for number, pause_s in enumerate(pauses))
