"""One fast engine over real sockets, and clients for it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from openai import AsyncOpenAI

from dualmap_sim.engine import EngineHost, EngineSpec, named_profile, start_engines


@pytest.fixture
async def host() -> AsyncIterator[EngineHost]:
    async with await start_engines([EngineSpec(named_profile("fast"), loras=("sim-lora",))]) as running:
        yield running


@pytest.fixture
def url(host: EngineHost) -> str:
    return host.addresses[0].url


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as opened:
        yield opened


@pytest.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as opened:
        yield opened
