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
MODEL_FLAGS = (
    "--served-model-name", MODEL, "--load-format", "dummy", "--enforce-eager", "--max-model-len", "4096",
)  # fmt: skip
ENGINE_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
START_S = 300.0


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


@pytest.fixture(scope="session")
def engines(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """URLs of vLLM's own OpenAI servers, all ready."""
    logs = tmp_path_factory.mktemp("vllm-logs")
    children, urls = [], []
    for number in range(NUM_ENGINES):
        port = _free_port()
        # The module, since the `vllm` command looks for a distribution of that name.
        argv = [
            os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(model_folder), *MODEL_FLAGS, "--host", "127.0.0.1", "--port", str(port),
            "--enable-prompt-tokens-details", "--enable-request-id-headers",
        ]  # fmt: skip
        children.append(start_child(argv, f"vllm-{number}", logs / f"vllm-{number}.log", ENGINE_ENV))
        urls.append(f"http://127.0.0.1:{port}")
    try:
        asyncio.run(_ready(urls, children))
        yield urls
    finally:
        asyncio.run(_stop(children))


async def _ready(urls: list[str], children: list[Child]) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(START_S):
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


async def _stop(children: list[Child]) -> None:
    await asyncio.gather(*(child.stop(grace_s=15) for child in children))


@pytest.fixture
async def system(engines: list[str]) -> AsyncIterator[Stack]:
    """Two routers, a worker beside each vLLM, a rebalancer."""
    async with Stack(StackOptions(engine_urls=engines, pool="vllm", slo_s=30.0)) as stack:
        yield stack
