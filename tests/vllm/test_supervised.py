"""`dualmap worker --engine vllm`: vLLM as the worker's own process, killed and back again."""

import asyncio
import json
import os
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest
import zmq
from redis.asyncio import Redis

from dualmap_cli.leftovers import describe
from dualmap_cli.stack import Stack, StackOptions
from dualmap_worker.settings import DEFAULT_ENGINE_URL

from ..kv_audit import audit, tokenize
from ..waiting import eventually
from .conftest import ENGINE_ENV, MODEL, MODEL_FLAGS, START_S

SERVER = "vllm.entrypoints.openai.api_server"
ATTACHED = {"engine": "url", "engine_args": "", "engine_python": ""}


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


class Load:
    """Streams without end, each of which must be answered whole."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stopping = False
        self.begun: dict[str, list[int]] = defaultdict(list)
        """Numbers of the streams that each instance has begun."""
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(8)]

    async def _client(self, number: int) -> None:
        url = f"{self._stack.router_urls[0]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
            while not self._stopping:
                number += 100
                raw = await api.completions.with_raw_response.create(
                    model=MODEL, prompt=f"{number} tell me of the fox ", max_tokens=150, temperature=0, stream=True,
                    stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
                    extra_headers={"x-dualmap-policy": "round-robin"},
                )  # fmt: skip
                self.begun[raw.headers["x-dualmap-instance"]].append(number)
                usage = None
                async for piece in raw.parse():
                    usage = piece.usage or usage
                assert usage is not None
                assert usage.completion_tokens == 150

    async def stop(self) -> None:
        """Let what runs end; raises what any client saw go wrong."""
        self._stopping = True
        await asyncio.gather(*self._tasks)


def server_of(stack: Stack) -> psutil.Process:
    """The API server that worker-1 has now."""
    return below(stack)[0]


async def owns_what_it_has(stack: Stack, http: aiohttp.ClientSession, server: psutil.Process) -> None:
    """What Redis says of the engine that came back is what its own events say."""
    argv = server.cmdline()
    replay_url = json.loads(argv[argv.index("--kv-events-config") + 1])["replay_endpoint"]
    engine_url = f"http://127.0.0.1:{argv[argv.index('--port') + 1]}"
    prompts: dict[str, list[int]] = {}
    async with Redis.from_url(stack.redis_url) as redis:
        for number in range(6):
            prompt = f"{number} the quick brown fox jumps over the lazy dog " * 80
            prompts[prompt] = await tokenize(http, engine_url, MODEL, prompt)
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 2}
            headers = {"x-dualmap-policy": "round-robin"}
            async with http.post(
                f"{stack.router_urls[0]}/v1/completions", json=body, headers=headers
            ) as reply:
                assert reply.status == 200

        async def agrees() -> bool:
            found = await audit(redis, "vllm", "worker-1", replay_url, prompts)
            return found.agrees and len(found.owned) > 0

        await eventually(agrees)


@pytest.mark.timeout(900)
async def test_a_vllm_that_is_killed_comes_back_and_ends_with_its_worker(
    models: Path, engines: list[str], http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
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

        # Two more instances, for what it cannot answer.
        for url in engines[:2]:
            await stack.event(stack.start_worker(url, **ATTACHED), "worker.ready")
        await stack.wait_ready(3)
        load = Load(stack)
        await eventually(lambda: len(load.begun["worker-1"]) >= 2, timeout_s=60.0)
        server.kill()
        await stack.event("worker-1", "engine.away", timeout_s=30.0)
        await eventually(lambda: gone([p for p in processes if p.pid != server.pid]), timeout_s=30.0)
        # What it had begun goes on elsewhere, and so does all that comes.
        await load.stop()
        assert set(load.begun) == {"worker-1", "worker-2", "worker-3"}
        await stack.event("worker-1", "engine.back", timeout_s=START_S)
        again = await describe(address)
        assert again.generation > first.generation
        await owns_what_it_has(stack, http, server_of(stack))
        assert await ask(stack, "the quick brown fox") == text

        _, processes = below(stack)
        stack.children["worker-1"].process.kill()
        await eventually(lambda: gone(processes), timeout_s=10.0)
