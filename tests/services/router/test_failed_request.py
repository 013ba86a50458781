"""A fault of the router's own while it works for a request: what its client hears, and what the log says."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from dualmap_router.app import RouterApp
from dualmap_router.settings import RouterSettings
from dualmap_service.ports import free_ports
from dualmap_sim.embedded_store import EmbeddedStore

from ...waiting import eventually

TRACE = "0af7651916cd43dd8448eb211c80319c"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def app(store: EmbeddedStore) -> AsyncIterator[tuple[RouterApp, str]]:
    """A router in this process, traced, and its URL."""
    port, stop = free_ports(), asyncio.Event()
    settings = RouterSettings(
        redis_url=store.url, host="127.0.0.1", port=port, trace_endpoint="http://127.0.0.1:9", trace_share=0.0
    )
    app = RouterApp(settings, stop)
    running = asyncio.create_task(app.run())
    await eventually(lambda: app.store.available and _listens(port))
    yield app, f"http://127.0.0.1:{port}"
    stop.set()
    await running


async def test_the_log_names_the_trace_where_there_is_one(
    app: tuple[RouterApp, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, url = app

    async def fly(flight: object) -> None:
        raise RuntimeError("no rule says what now")

    monkeypatch.setattr(router.api._pilot, "fly", fly)
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "r1"}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{url}/v1/audio/speech", json={}, headers=headers) as response:
            assert response.status == 500
            assert (await response.json())["error"]["code"] == "internal_error"
        async with http.post(f"{url}/v1/audio/speech", json={}, headers={"x-request-id": "r2"}) as response:
            assert response.status == 500
    first, second = [record for record in caplog.records if record.getMessage() == "request.failed"]
    assert (first.levelno, vars(first)["request_id"], vars(first)["trace_id"]) == (logging.ERROR, "r1", TRACE)
    # Nobody sampled the second: that it failed is why it is traced.
    assert vars(second)["request_id"] == "r2"
    assert len(vars(second)["trace_id"]) == 32
