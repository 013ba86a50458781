"""A whole worker in this process, in front of an engine on a real socket and a real store."""

import asyncio

import pytest

from dualmap_service.lifecycle import ServiceFailedError, wait_for
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_worker.app import WorkerApp
from dualmap_worker.settings import WorkerSettings

from .conftest import SocketEngine, whole


async def test_of_two_that_share_a_name_the_earlier_start_ends_and_says_why(
    store: EmbeddedStore, socket_engine: SocketEngine
) -> None:
    async def says(_: asyncio.StreamWriter) -> bytes:
        return whole(b'{"data": [{"id": "m"}]}')

    socket_engine.says = says
    settings = WorkerSettings(redis_url=store.url, engine_url=socket_engine.url, instance="w", drain_s=1.0)
    stops = [asyncio.Event(), asyncio.Event()]
    first = asyncio.create_task(WorkerApp(settings, stops[0]).run())
    await asyncio.sleep(0.5)
    second = asyncio.create_task(WorkerApp(settings, stops[1]).run())
    assert await wait_for(stops[0], 20.0)
    with pytest.raises(ServiceFailedError, match=r"registered as 'w'.*DUALMAP_WORKER_INSTANCE"):
        await first
    assert not stops[1].is_set()
    stops[1].set()
    await second
