"""`dualmap plan` and `dualmap drain` on a live pool."""

import asyncio
import json
import sys
from typing import Any

import aiohttp
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.embedded_store import EmbeddedStore

from ..waiting import eventually


async def dualmap(redis_url: str, *args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", *args, "--redis-url", redis_url, "--pool", "demo",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def ask(stack: Stack, tokens: int) -> tuple[int, str, int]:
    """(status, instance, tokens answered)"""
    body: dict[str, Any] = {
        "model": "sim-model", "prompt": f"{tokens} a prompt " * 50, "max_tokens": tokens, "ignore_eos": True,
    }  # fmt: skip
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{stack.router_urls[0]}/v1/completions", json=body) as response,
    ):
        answer = await response.json()
        return response.status, response.headers["x-dualmap-instance"], answer["usage"]["completion_tokens"]


async def state_of(stack: Stack) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{stack.router_urls[0]}/readyz") as response:
        found: dict[str, Any] = await response.json()
        return found


async def test_plan_and_drain() -> None:
    async with Stack(StackOptions(routers=1, workers=3)) as stack:
        status, out, _ = await dualmap(stack.redis_url, "plan", "add", "worker-4", "--json")
        change = json.loads(out)
        assert status == 0
        # DESIGN 5.3: an instance that joins three others becomes a candidate of half the prefixes.
        assert change["changed_share"] == pytest.approx(0.5, abs=0.05)
        assert change["cold_share"] == 0.0
        assert set(change["after"]) == {"worker-1", "worker-2", "worker-3", "worker-4"}

        status, out, _ = await dualmap(stack.redis_url, "plan", "drain", "worker-2")
        assert status == 0
        assert "get another pair of candidates" in out
        assert (await state_of(stack))["instances"] == ["worker-1", "worker-2", "worker-3"]

        # A drain waits for what runs, and loses nothing.
        long = [asyncio.create_task(ask(stack, 100 + number)) for number in range(6)]
        await eventually(lambda: anything_runs(stack))
        status, out, err = await dualmap(stack.redis_url, "drain", "worker-1", "worker-2", "--json")
        assert (status, err) == (0, "")
        drained = json.loads(out)["drained"]
        assert {one["instance"]: one["running"] for one in drained} == {"worker-1": 0, "worker-2": 0}
        assert [(status, tokens) for status, _, tokens in await asyncio.gather(*long)] == [
            (200, 100 + number) for number in range(6)
        ]
        await eventually(lambda: only_the_third(stack))
        assert (await ask(stack, 3))[:2] == (200, "worker-3")

        # Mistakes are named.
        status, _, err = await dualmap(stack.redis_url, "drain", "worker-33")
        assert status == 1
        assert "did you mean worker-3?" in err
        status, _, err = await dualmap(stack.redis_url, "plan", "add", "worker-3")
        assert (status, "already" in err) == (1, True)
        status, _, err = await dualmap(stack.redis_url, "plan", "drain", "worker-3")
        assert (status, "no instance would be left" in err) == (1, True)
        assert (await settle(stack.redis_url, "demo", stack.router_urls)).clean


async def anything_runs(stack: Stack) -> bool:
    return int((await state_of(stack))["exchanges"]) == 6


async def only_the_third(stack: Stack) -> bool:
    return (await state_of(stack))["instances"] == ["worker-3"]


async def test_nobody_there(store: EmbeddedStore) -> None:
    status, _, err = await dualmap(store.url, "drain", "worker-1")
    assert status == 1
    assert "nobody is registered in pool 'demo'" in err
    store.kill()
    status, _, err = await dualmap(store.url, "plan", "add", "worker-1")
    assert status == 1
    assert "no answer from" in err
