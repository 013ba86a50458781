"""A rebalancer inside the test, its metrics, and a store to look into."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dualmap_rebalancer.app import run
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import Perf, parse_perf
from dualmap_wire.redis_keys import PoolKeys

from ...waiting import eventually
from .recording_worker import POOL

KEYS = PoolKeys(POOL)


async def get(address: str, path: str) -> tuple[int, str]:
    """Status and body of a page; 0 where nobody listens."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return 0, ""
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def metric(address: str, name: str, **labels: str) -> float:
    """A sample of the metrics page; 0 where there is none."""
    _, body = await get(address, "/metrics")
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if sample.name == "dualmap_rebalancer_" + name and sample.labels == labels:
                return sample.value
    return 0.0


class Running:
    """A rebalancer that runs in the test's own event loop."""

    def __init__(self, address: str, stop: asyncio.Event, task: "asyncio.Task[None]") -> None:
        self.address = address
        self.stop = stop
        self.task = task

    async def metric(self, name: str, **labels: str) -> float:
        return await metric(self.address, name, **labels)

    async def above(self, name: str, value: float, timeout_s: float = 5.0, **labels: str) -> None:
        async def reached() -> bool:
            return await self.metric(name, **labels) > value

        await eventually(reached, timeout_s)

    async def passes(self, num: int) -> None:
        """Wait for passes to be made from now on."""
        await self.above("passes_total", await self.metric("passes_total") + num)


class _Ready(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.address: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "rebalancer.ready":
            self.address = record.metrics_address


Start = Callable[..., Any]


@pytest.fixture
def start(store: EmbeddedStore) -> Start:
    """`async with start(**settings) as running`: a rebalancer that leads."""

    @asynccontextmanager
    async def started(leads: bool = True, **overrides: Any) -> AsyncIterator[Running]:
        fields = {"reap_grace_s": 0.2, "members_poll_s": 0.1, "reap_s": 0.1, **overrides}
        settings = RebalancerSettings(redis_url=store.url, pool=POOL, metrics_port=0, **fields)
        stop, ready, logger = asyncio.Event(), _Ready(), logging.getLogger("dualmap_rebalancer.app")
        logger.addHandler(ready)
        logger.setLevel(logging.INFO)
        task = asyncio.create_task(run(settings, stop))
        try:
            await eventually(lambda: ready.address or task.done())
            running = Running(ready.address or "", stop, task)
            if leads:
                await running.above("leader", 0)
            yield running
        finally:
            logger.removeHandler(ready)
            stop.set()
            async with asyncio.timeout(5):
                await task

    return started


async def perf_of(shared: Store, instance: str) -> Perf | None:
    """What `perf` holds of an instance."""
    packed = await shared.command("HGET", KEYS.perf, instance)
    return parse_perf(packed or b"")
