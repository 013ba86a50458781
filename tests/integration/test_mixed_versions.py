"""A rolling upgrade: parts of an earlier version and of this one are one system, and no request notices."""

import asyncio
import io
import os
import subprocess
import tarfile
import tomllib
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.workloads import Traffic, make_workload
from dualmap_wire.redis_functions import library

from ..metric_list import ROOT
from .load_checks import (
    assert_all_once,
    assert_at_rest,
    holds,
    metric,
    prompts,
    rebalancer_url,
    replay,
    set_faults,
    under_load,
    until,
)

EARLIER = "21430d8"
"""Its functions in Redis are others than today's. A release's tag, once there are releases."""
_TREES = ("dualmap", "proto", "services", "sim", "cli", "pyproject.toml")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier version's code."""
    command = ["git", "archive", EARLIER, *_TREES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        # No want of the machine: how a clone was made is not for the tests to say.
        pytest.skip(f"no {EARLIER} in this checkout's history: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class MixedStack(Stack):
    """A system some of whose parts run an earlier version."""

    def __init__(self, options: StackOptions, earlier: Path, parts: set[str]) -> None:
        super().__init__(options)
        roots = tomllib.loads((earlier / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
        self._path = os.pathsep.join(str(earlier / root) for root in roots["dev-mode-dirs"])
        self._earlier = parts

    def environment(self, name: str) -> dict[str, str]:
        # Before what the installation brings along, and without the folder that this process is in.
        path = {"PYTHONPATH": self._path, "PYTHONSAFEPATH": "1"} if name in self._earlier else {}
        return {**super().environment(name), **path}

    async def upgrade(self, name: str, event: str) -> None:
        """Stop an earlier part as its operator does, and start this version in its place."""
        self._earlier.remove(name)
        await self.children[name].stop(grace_s=40.0)
        self.start_again(name)
        await self.event(name, event)


async def test_versions_share_a_pool_while_one_replaces_the_other(earlier: Path) -> None:
    options = StackOptions(routers=2, workers=4, rebalancers=2, time_scale=4.0, slo_s=20.0)
    parts = {"router-1", "worker-1", "worker-2", "rebalancer-1"}
    async with MixedStack(options, earlier, parts) as stack:
        async with Redis.from_url(stack.redis_url) as redis:
            names = {
                dict(zip(row[::2], row[1::2], strict=True))[b"library_name"]
                for row in await redis.function_list()
            }
        assert f"dualmap_{library()[0]}".encode() in names
        assert len(names) == 2, "each version brings its functions"
        # Routers of either version place requests on instances of either.
        paired = (await replay(stack, prompts("pairs", rate_req_s=10.0, count=80, tokens=512))).records
        await assert_all_once(stack, paired)
        placed = {(record.router, record.instance) for record in paired}
        assert placed == {(f"router-{r}", f"worker-{w}") for r in (1, 2) for w in (1, 2, 3, 4)}

        # A worker of either version turns slow: what waits there moves to the others, of either version.
        burst = prompts("burst", rate_req_s=20.0, count=64, tokens=4096)
        async with under_load(stack, (burst, True)) as load:
            for number in (1, 3):
                await until(partial(holds, stack, f"worker-{number}", queued=3), 20, "a queue")
                await set_faults(stack.engine_urls[number - 1], slow_down=10.0)
            records = await load.records()
        for number in (1, 3):
            await set_faults(stack.engine_urls[number - 1], reset=True)
        await assert_all_once(stack, records)
        assert any(record.moves for record in records)

        # What serves goes before what asks: workers, then rebalancers. Clients stay with their routers.
        upgrading = asyncio.create_task(_upgrade(stack))
        turn = 0
        while turn == 0 or not upgrading.done():
            chats = make_workload("chat", Traffic(8.0, 480, seed=turn), {"turns_mean": 3, "think_s": 5})
            whole = prompts(f"whole{turn}", rate_req_s=1.0, count=60, tokens=1024)
            async with under_load(stack, (chats, True), (whole, False)) as load:
                records = await load.records()
            await assert_all_once(stack, records)
            turn += 1
        await upgrading
        for url in stack.router_urls:
            assert await metric(url, "dualmap_store_available") == 1.0
        garbage = [
            await metric(await rebalancer_url(stack, name), "dualmap_rebalancer_telemetry_garbage_total")
            for name in ("rebalancer-1", "rebalancer-2")
        ]
        assert garbage == [0.0, 0.0]
        await assert_at_rest(stack)


async def _upgrade(stack: MixedStack) -> None:
    for name in ("worker-1", "worker-2"):
        await stack.upgrade(name, "worker.ready")
    await stack.upgrade("rebalancer-1", "rebalancer.ready")
