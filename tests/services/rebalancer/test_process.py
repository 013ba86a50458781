"""The rebalancer as a process: it takes over from the dead and from those who leave, and ends cleanly."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dualmap_service.child import Child, start_child
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore

from ...waiting import eventually
from .conftest import KEYS, Start, get, metric, perf_of
from .recording_worker import POOL, RecordingWorker, hot_queue

MAIN = (sys.executable, "-m", "dualmap_rebalancer")


class Process:
    def __init__(self, child: Child) -> None:
        self.child = child
        self.address = ""

    async def ready(self) -> None:
        def said() -> bool:
            assert self.child.running, self.child.log_tail()
            found = re.search(r"\{.*rebalancer\.ready.*\}", self.child.log_tail(100_000))
            if found:
                self.address = json.loads(found[0])["metrics_address"]
            return bool(found)

        await eventually(said, 15)

    async def leads(self) -> bool:
        return await metric(self.address, "leader") == 1


Spawn = Callable[..., Any]


@pytest.fixture
def spawn(store: EmbeddedStore, tmp_path: Path) -> Spawn:
    """`async with spawn(name) as process`: a rebalancer process that is ready."""

    @asynccontextmanager
    async def spawned(name: str) -> AsyncIterator[Process]:
        env = {
            "DUALMAP_REDIS_URL": store.url,
            "DUALMAP_POOL": POOL,
            "DUALMAP_REBALANCER_METRICS_PORT": "0",
            "DUALMAP_REBALANCER_REBALANCER_ID": name,
        }
        process = Process(start_child(MAIN, name, log=tmp_path / f"{name}.log", env=env))
        try:
            await process.ready()
            yield process
        finally:
            await process.child.stop()

    return spawned


async def test_a_standby_takes_over_and_moves_go_on(spawn: Spawn, shared: Store) -> None:
    async with AsyncExitStack() as stack:
        w1 = await stack.enter_async_context(RecordingWorker(shared, "w1"))
        await stack.enter_async_context(RecordingWorker(shared, "w2"))
        first = await stack.enter_async_context(spawn("first"))
        await eventually(first.leads)
        second, third = await asyncio.gather(
            stack.enter_async_context(spawn("second")), stack.enter_async_context(spawn("third"))
        )
        for standby in (second, third):
            await eventually(lambda standby=standby: get(standby.address, "/readyz"))
            assert (await get(standby.address, "/readyz"))[0] == 200
            assert not await standby.leads()
        await eventually(lambda: perf_of(shared, "w1"))

        # 1. Killed: the lease has to end first.
        os.kill(first.child.pid, signal.SIGKILL)
        died = time.monotonic()

        async def next_leader() -> Process | None:
            for process in (second, third):
                if process.child.running and await process.leads():
                    return process
            return None

        leader: Process = await eventually(next_leader, 6)
        assert time.monotonic() - died < 5
        w1.say(queued=hot_queue("w2"))
        await eventually(lambda: w1.calls, 2)
        fence = w1.calls[-1].fence
        w1.say(queued=())

        # 2. Told to leave: the lead is handed over at once.
        leader.child.process.terminate()
        left = time.monotonic()
        other = third if leader is second else second
        await eventually(other.leads)
        assert time.monotonic() - left < 1.5
        assert await leader.child.wait(3) == 0
        w1.say(queued=hot_queue("w2"))
        await eventually(lambda: w1.calls[-1].fence > fence, 2)


async def test_a_store_that_freezes_and_returns(start: Start, shared: Store, store: EmbeddedStore) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start() as running:
        await eventually(lambda: perf_of(shared, "w2"))
        assert (await get(running.address, "/readyz"))[0] == 200
        store.pause()

        async def not_ready() -> bool:
            ready, _ = await get(running.address, "/readyz")
            return ready == 503 and await running.metric("leader") == 0

        await eventually(not_ready)
        assert (await get(running.address, "/healthz"))[0] == 200
        passes = await running.metric("passes_total")
        w1.say(queued=hot_queue("w2"))
        reports = await running.metric("reports_total", instance="w1")
        await running.above("reports_total", reports + 2, instance="w1")
        assert await running.metric("passes_total") == passes
        assert not w1.calls
        store.resume()
        await eventually(lambda: w1.calls)


async def test_a_store_that_lost_everything(start: Start, shared: Store, store: EmbeddedStore) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start() as running:
        await eventually(lambda: perf_of(shared, "w2"))
        fence = int(await shared.command("GET", KEYS.key("fence")))
        await store.restart()
        await eventually(lambda: shared.available)

        async def refolded() -> bool:
            return await perf_of(shared, "w1") is not None and await perf_of(shared, "w2") is not None

        await eventually(refolded)
        await running.above("leader", 0)
        w1.say(queued=hot_queue("w2"))
        await eventually(lambda: w1.calls)
        assert w1.calls[0].fence > fence, "workers would ignore a token that went back"


async def test_starts_without_a_store_and_waits_for_it(
    start: Start, shared: Store, store: EmbeddedStore
) -> None:
    store.kill()
    async with start(leads=False) as running:
        assert (await get(running.address, "/readyz"))[0] == 503
        await store.restart()
        await running.above("leader", 0)
        assert (await get(running.address, "/readyz"))[0] == 200


async def test_sigterm_while_the_store_is_frozen(spawn: Spawn, store: EmbeddedStore) -> None:
    async with spawn("only") as process:
        await eventually(process.leads)
        store.pause()
        process.child.process.terminate()
        assert await process.child.wait(4) == 0
        log = process.child.log_tail(100_000)
        assert "rebalancer.stopped" in log
        assert "Traceback" not in log


async def test_a_bad_setting_names_itself(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        (("PERIOD_S", "0"), ("PERIODS", "1"), ("RENEW_S", "2"), ("ORDER", "lifo")),
    ):
        env = {f"DUALMAP_REBALANCER_{name}": value}
        child = start_child(MAIN, "bad", log=tmp_path / f"{number}.log", env=env)
        assert await child.wait(15) == 2
        assert child.log_tail().count("\n") == 1
        assert name.lower() in child.log_tail().lower()
