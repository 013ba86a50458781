"""`dualmap worker --engine vllm`: vLLM as the worker's own process, killed and back again."""

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import zmq

from dualmap_cli.leftovers import describe
from dualmap_cli.stack import Stack, StackOptions
from dualmap_worker.settings import DEFAULT_ENGINE_URL

from ..waiting import eventually
from .conftest import ENGINE_ENV, MODEL, MODEL_FLAGS, START_S

SERVER = "vllm.entrypoints.openai.api_server"


async def ask(stack: Stack, text: str) -> str:
    """The text of a greedy answer through the router."""
    async with openai.AsyncOpenAI(base_url=f"{stack.router_urls[0]}/v1", api_key="none") as api:
        answer = await api.completions.create(model=MODEL, prompt=text, max_tokens=4, temperature=0)
    return answer.choices[0].text


def below(stack: Stack) -> tuple[psutil.Process, list[psutil.Process]]:
    """vLLM's API server, and every process below the worker."""
    processes = psutil.Process(stack.children["worker-1"].pid).children(recursive=True)
    [server] = [process for process in processes if process.cmdline()[2:3] == [SERVER]]
    return server, processes


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them runs."""
    _, left = psutil.wait_procs(processes, timeout=0)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in left if process.is_running())


def kv_batch(server: psutil.Process, what: str) -> bytes:
    """A KV event batch from where the server was told to publish them, or to replay them."""
    argv = server.cmdline()
    config: dict[str, Any] = json.loads(argv[argv.index("--kv-events-config") + 1])
    with zmq.Context() as context, context.socket(zmq.SUB if what == "endpoint" else zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if what == "endpoint":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(config[what])
        if what == "replay_endpoint":
            socket.send_multipart([b"", (0).to_bytes(8, "big")])
        assert socket.poll(20_000), f"nothing came from {config[what]}"
        return socket.recv_multipart()[-1]


@pytest.mark.timeout(900)
async def test_a_vllm_that_is_killed_comes_back_and_ends_with_its_worker(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENGINE_ENV.items():
        monkeypatch.setenv(name, value)
    options = StackOptions(
        routers=1,
        engine_urls=[DEFAULT_ENGINE_URL],
        engine_start_s=START_S,
        pool="vllm",
        slo_s=30.0,
        worker_flags={
            "engine": "vllm",
            "engine_args": shlex.join([str(models / MODEL), *MODEL_FLAGS]),
            "engine_python": os.environ["VLLM_PYTHON"],
        },
    )
    async with Stack(options) as stack:
        ready = await stack.event("worker-1", "worker.ready")
        address = str(ready["grpc_address"])

        text = await ask(stack, "the quick brown fox")
        first = await describe(address)
        assert (first.engine_version.split(".")[0], list(first.engine_lacks)) == ("0", [])
        server, processes = below(stack)
        # The keeper, the API server and its engine core at least.
        assert len(processes) >= 3
        heard = asyncio.create_task(asyncio.to_thread(kv_batch, server, "endpoint"))
        await asyncio.sleep(1.0)
        await ask(stack, "jumps over the lazy dog " * 200)
        assert b"BlockStored" in await heard
        assert b"BlockStored" in await asyncio.to_thread(kv_batch, server, "replay_endpoint")

        server.kill()
        await stack.event("worker-1", "engine.away", timeout_s=5.0)
        await eventually(lambda: gone([p for p in processes if p.pid != server.pid]), timeout_s=10.0)
        await stack.event("worker-1", "engine.back", timeout_s=START_S)
        again = await describe(address)
        assert again.generation > first.generation
        assert await ask(stack, "the quick brown fox") == text

        _, processes = below(stack)
        stack.children["worker-1"].process.kill()
        await eventually(lambda: gone(processes), timeout_s=10.0)
