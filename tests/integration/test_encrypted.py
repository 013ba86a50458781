"""The whole system with every connection between its parts encrypted and both ends known."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dualmap_cli.stack import Stack, StackOptions

from ..certificates import Authority
from .load_checks import (
    assert_all_once,
    assert_at_rest,
    holds,
    moves_done,
    prompts,
    set_faults,
    under_load,
    until,
)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    authority = Authority(tmp_path / "pem")
    pem = authority.issue("service", "dualmap.internal")
    options = StackOptions(
        routers=2,
        workers=3,
        time_scale=8.0,
        slo_s=20.0,
        shared_flags={
            "grpc_ca_file": authority.ca_file,
            "grpc_cert_file": pem.cert_file,
            "grpc_key_file": pem.key_file,
            "grpc_server_name": "dualmap.internal",
        },
    )
    async with Stack(options) as running:
        yield running


async def run(stack: Stack, *command: str, **flags: object) -> tuple[int | None, str]:
    """(status, what it says) of an operator's command."""
    shared = {"redis_url": stack.redis_url, "pool": stack.options.pool, **stack.options.shared_flags, **flags}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in shared.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", *command, *given,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_it_works_as_ever(stack: Stack) -> None:
    streamed = prompts("streamed", rate_req_s=15.0, count=48, tokens=4096)
    whole = prompts("whole", rate_req_s=5.0, count=16, tokens=2048, seed=2)
    async with under_load(stack, (streamed, True), (whole, False)) as load:
        await until(lambda: holds(stack, "worker-1", queued=4), 20, "a queue on worker-1")
        await set_faults(stack.engine_urls[0], slow_down=10.0)
        records = await load.records()
    await assert_all_once(stack, records)
    # The rebalancer hears the workers and may call them.
    assert await moves_done(stack) > 0
    await assert_at_rest(stack)

    status, said = await run(stack, "doctor", "--json")
    assert status == 0, said
    assert {finding["state"] for finding in json.loads(said)["findings"]} <= {"ok", "warn"}, said
    status, said = await run(stack, "drain", "worker-3", "--json")
    assert status == 0, said
    assert json.loads(said)["drained"] == [{"instance": "worker-3", "handed_back": 0, "running": 0}]
    await _probed(stack)


async def _probed(stack: Stack) -> None:
    address = (await stack.event("worker-1", "worker.ready"))["grpc_address"]
    flags = stack.options.shared_flags
    for environ, ready in (({f"DUALMAP_{k.upper()}": str(v) for k, v in flags.items()}, True), ({}, False)):
        probe = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dualmap_service.probe", f"grpc://{address}", env=environ
        )
        assert (await probe.wait() == 0) is ready


async def test_an_operator_without_certificates_learns_what_is_missing(stack: Stack) -> None:
    flags = {"grpc_ca_file": "", "grpc_cert_file": "", "grpc_key_file": "", "grpc_server_name": ""}
    status, said = await run(stack, "doctor", "--json", **flags)
    assert status == 1
    bad = [finding for finding in json.loads(said)["findings"] if finding["state"] == "bad"]
    assert {finding["about"] for finding in bad} >= {"worker-1", "worker-2", "worker-3"}
    assert all("certificates" in finding["do"] for finding in bad if finding["about"].startswith("worker"))
    status, said = await run(stack, "drain", "worker-1", **flags)
    assert status == 1
    assert "does not answer: UNAVAILABLE" in said
