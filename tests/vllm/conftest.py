"""Real vLLM processes on the CPU, started once, and a DualMap in front of them."""

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import Child, start_child
from dualmap_service.ports import free_ports

from ..integration.conftest import running
from .asking import Ask

NUM_ENGINES = 3
MODEL = "tiny"
ADAPTER = "everywhere"
"""A LoRA adapter that all engines have."""
RARE_ADAPTER = "rare"
"""One that no engine has until a test loads it."""
KV_TOKENS = 24_576
BLOCK_TOKENS = 32
OPTIONS = StackOptions(routers=2, rebalancers=1, pool="vllm", slo_s=30.0)
START_S = 300.0
ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
MODEL_FLAGS = (
    "--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager", "--max-model-len", "4096",
    # Few blocks, so that prompts are evicted.
    "--num-gpu-blocks-override", str(KV_TOKENS // BLOCK_TOKENS), "--block-size", str(BLOCK_TOKENS),
)  # fmt: skip
_REPORTED: list[str] = []
Report = Callable[[str], None]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that only these tests know, and its adapters, by name."""
    folder = tmp_path_factory.mktemp("models")
    maker = Path(__file__).with_name("make_model.py")
    folders = [folder / name for name in (MODEL, ADAPTER, RARE_ADAPTER)]
    subprocess.run([os.environ["VLLM_PYTHON"], str(maker), *map(str, folders)], check=True)
    return folder


def start_vllm(
    name: str, models: Path, logs: Path, events_url: str, replay_url: str, *flags: str
) -> tuple[Child, str]:
    """vLLM's own OpenAI server and its URL; later flags win."""
    port = free_ports()
    kv_events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": events_url,
        "replay_endpoint": replay_url,
    }
    # The module, since the `vllm` command looks for a distribution of that name.
    argv = [
        os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(models / MODEL), *MODEL_FLAGS, "--host", "127.0.0.1", "--port", str(port),
        "--enable-prompt-tokens-details", "--enable-request-id-headers",
        "--kv-events-config", json.dumps(kv_events), *flags,
    ]  # fmt: skip
    return start_child(argv, name, logs / f"{name}.log", ENGINE_ENV), f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def kv_urls() -> Iterator[list[tuple[str, str]]]:
    """Where each engine publishes and replays its KV events; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="dm-") as folder:
        yield [
            (f"ipc://{folder}/events-{number}", f"ipc://{folder}/replay-{number}")
            for number in range(NUM_ENGINES)
        ]


@pytest.fixture(scope="session")
def engines(
    models: Path, kv_urls: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """URLs of vLLM's own OpenAI servers, all ready."""
    logs = tmp_path_factory.mktemp("vllm-logs")
    children, urls = [], []
    for number, (events_url, replay_url) in enumerate(kv_urls):
        child, url = start_vllm(
            f"vllm-{number}", models, logs, events_url, replay_url,
            "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2",
            "--lora-modules", f"{ADAPTER}={models / ADAPTER}",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        )  # fmt: skip
        children.append(child)
        urls.append(url)
    try:
        asyncio.run(ready(urls, children))
        yield urls
    finally:
        asyncio.run(stop(children))


async def ready(urls: list[str], children: list[Child]) -> None:
    """Wait until all serve."""
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


async def stop(children: list[Child]) -> None:
    """Stop all."""
    await asyncio.gather(*(child.stop(grace_s=15) for child in children))


@pytest.fixture(scope="session")
def options(engines: list[str], kv_urls: list[tuple[str, str]]) -> StackOptions:
    """A DualMap in front of all three."""
    return replace(OPTIONS, engine_urls=engines, kv_urls=dict(zip(engines, kv_urls, strict=True)))


@pytest.fixture(scope="session")
def session_system(options: StackOptions) -> Iterator[Stack]:
    """Two routers, a worker beside each vLLM, a rebalancer; tests take `system`."""
    yield from running(options)


@pytest.fixture
async def system(session_system: Stack) -> AsyncIterator[Stack]:
    """The shared system; whatever a test does, it leaves nothing."""
    yield session_system
    left = await settle(session_system.redis_url, OPTIONS.pool, session_system.router_urls)
    assert left.clean, left


@pytest.fixture
async def own_system(options: StackOptions) -> AsyncIterator[Stack]:
    """The same for one test alone, which may kill parts of it."""
    async with Stack(options) as stack:
        yield stack


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@pytest.fixture
def ask(system: Stack, http: aiohttp.ClientSession) -> Ask:
    """Requests to the shared system and to an engine behind it."""
    return Ask(http, system.router_urls, system.engine_urls)


@pytest.fixture
def report() -> Report:
    """Takes a line with what a test measured, to be printed at the end."""
    return _REPORTED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, behind the tests' outcome."""
    for line in _REPORTED:
        terminalreporter.write_line(f"measured: {line}")
