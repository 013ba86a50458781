"""Real vLLM processes on the CPU, and a DualMap in front of them."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import Child, start_child

NUM_ENGINES = 2
MODEL = "tiny"
_START_S = 300.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that only these tests know."""
    folder = tmp_path_factory.mktemp("model")
    maker = Path(__file__).with_name("make_model.py")
    subprocess.run([os.environ["VLLM_PYTHON"], str(maker), str(folder)], check=True)
    return folder


def start_vllm(name: str, model_folder: Path, logs: Path, *flags: str) -> tuple[Child, str]:
    """vLLM's own OpenAI server and its URL; later flags win."""
    port = _free_port()
    # The module, since the `vllm` command looks for a distribution of that name.
    argv = [
        os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model_folder), "--served-model-name", MODEL, "--load-format", "dummy",
        "--enforce-eager", "--max-model-len", "4096", "--host", "127.0.0.1", "--port", str(port),
        "--enable-prompt-tokens-details", "--enable-request-id-headers", *flags,
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return start_child(argv, name, logs / f"{name}.log", env), f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def engines(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """URLs of vLLM's own OpenAI servers, all ready."""
    logs = tmp_path_factory.mktemp("vllm-logs")
    children, urls = [], []
    for number in range(NUM_ENGINES):
        child, url = start_vllm(f"vllm-{number}", model_folder, logs)
        children.append(child)
        urls.append(url)
    try:
        asyncio.run(ready(urls, children))
        yield urls
    finally:
        asyncio.run(stop(children))


async def ready(urls: list[str], children: list[Child]) -> None:
    """Wait until all serve."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(_START_S):
        for url, child in zip(urls, children, strict=True):
            while not await _healthy(http, url):
                assert child.running, child.log_tail(4000)
                await asyncio.sleep(0.5)


async def _healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def stop(children: list[Child]) -> None:
    """Stop all."""
    await asyncio.gather(*(child.stop(grace_s=15) for child in children))


@pytest.fixture
async def system(engines: list[str]) -> AsyncIterator[Stack]:
    """Two routers, a worker beside each vLLM, a rebalancer."""
    async with Stack(StackOptions(engine_urls=engines, pool="vllm", slo_s=30.0)) as stack:
        yield stack
