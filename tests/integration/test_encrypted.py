"""The whole system with every connection between its parts encrypted and both ends known."""

import asyncio
import json
import shutil
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import APIConnectionError, AsyncOpenAI, DefaultAsyncHttpxClient
from zmq.auth import create_certificates

from dualmap_cli.settings_options import as_arguments
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.engine.canonical import chat_prompt
from dualmap_sim.engine.text import expected_text

from ..certificates import Authority
from .load_checks import (
    MODEL,
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
    clients = tmp_path / "clients"
    clients.mkdir()
    for name in ("workers", "rebalancers"):
        create_certificates(tmp_path, name)
    shutil.copy(tmp_path / "rebalancers.key", clients)
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
            # Of whoever listens to workers; these have their own.
            "curve_key_file": tmp_path / "rebalancers.key_secret",
            "curve_workers_key_file": tmp_path / "workers.key",
        },
        worker_flags={"curve_key_file": tmp_path / "workers.key_secret", "curve_clients_dir": clients},
    )
    async with Stack(options) as running:
        yield running


async def run(stack: Stack, *command: str, **flags: object) -> tuple[int | None, str]:
    """(status, what it says) of an operator's command."""
    shared = {"redis_url": stack.redis_url, "pool": stack.options.pool, **stack.options.shared_flags, **flags}
    given = as_arguments(shared)
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
    assert await _probe(f"grpc://{address}", {f"DUALMAP_{k.upper()}": str(v) for k, v in flags.items()})
    assert not await _probe(f"grpc://{address}", {})


async def _probe(url: str, environ: dict[str, str]) -> bool:
    """Whether a container's health check is content."""
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_service.probe", url, env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    return await probe.wait() == 0


async def test_the_openai_client_over_tls(stack: Stack, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "http")
    pem, own = authority.issue("router"), authority.issue("client", "somebody")
    files = {
        "tls_cert_file": pem.cert_file,
        "tls_key_file": pem.key_file,
        "tls_client_ca_file": authority.ca_file,
    }
    url = str((await stack.event(stack.start_router(**files), "router.ready"))["url"])
    assert url.startswith("https://127.0.0.1:")
    context = authority.client_context(own)
    await until(lambda: _reaches(url, context, 3), 20, "a router that reaches everybody")
    messages: list[Any] = [{"role": "user", "content": "over TLS"}]
    async with _openai(url, context) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=200, stream=True
        )
        text = "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])
    assert text == expected_text(chat_prompt(messages), 200)

    async with _openai(url, Authority(tmp_path / "stranger").client_context()) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.models.list()
        assert "CERTIFICATE_VERIFY_FAILED" in repr(caught.value.__cause__)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(url.replace("https", "http") + "/readyz")
    environ = {f"DUALMAP_ROUTER_{k.upper()}": v for k, v in files.items()}
    assert await _probe(f"{url}/readyz", environ)
    assert not await _probe(f"{url}/readyz", {})
    await assert_at_rest(stack)


def _openai(url: str, context: ssl.SSLContext) -> AsyncOpenAI:
    http = DefaultAsyncHttpxClient(verify=context)
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30, http_client=http)


async def _reaches(url: str, context: ssl.SSLContext, instances: int) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz", ssl=context) as response:
        return len((await response.json())["instances"]) >= instances


async def test_an_operator_without_certificates_learns_what_is_missing(stack: Stack) -> None:
    flags = dict.fromkeys(stack.options.shared_flags, "")
    status, said = await run(stack, "doctor", "--json", **flags)
    assert status == 1
    bad = [finding for finding in json.loads(said)["findings"] if finding["state"] == "bad"]
    assert {finding["about"] for finding in bad} >= {"worker-1", "worker-2", "worker-3"}
    assert all("certificates" in finding["do"] for finding in bad if finding["about"].startswith("worker"))
    status, said = await run(stack, "drain", "worker-1", **flags)
    assert status == 1
    assert "does not answer: UNAVAILABLE" in said
