"""`dualmap sim-engine` as a process of its own."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from dualmap_cli.commands.sim_engine import sim_engine

RUN = "from dualmap_cli.commands.sim_engine import sim_engine; sim_engine()"


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[dict[str, Any]]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        yield process, json.loads(line)["engines"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_it_says_where_and_stops_when_told() -> None:
    arguments = (
        "--engines",
        "2",
        "--profile",
        "fast",
        "--model",
        "m",
        "--kv-blocks",
        "64",
        "--max-model-len",
        "512",
    )
    async with running(*arguments) as (process, engines):
        assert len(engines) == 2
        assert all(engine["kv_events"].startswith("tcp://127.0.0.1:") for engine in engines)
        async with aiohttp.ClientSession(engines[1]["url"]) as http:
            async with http.post(
                "/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 2}
            ) as reply:
                assert reply.status == 200
            endless = asyncio.create_task(_read(http))
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
            await asyncio.gather(endless, return_exceptions=True)


async def _read(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True}) as reply:
        await reply.read()


async def test_a_crash_can_end_the_process() -> None:
    async with running("--exit-on-crash", "--no-kv-events") as (process, engines):
        assert engines[0]["kv_events"] is None
        async with aiohttp.ClientSession(engines[0]["url"]) as http, http.post("/admin/crash") as reply:
            assert reply.status == 200
        assert await asyncio.wait_for(process.wait(), 10) == 70


@pytest.mark.parametrize(
    "arguments", [["--profile", "none"], ["--jitter", "1"], ["--kv-blocks", "0"], ["--time-scale", "0"]]
)
def test_bad_settings_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(sim_engine, arguments)
    assert result.exit_code == 2
    assert "Error" in result.output
