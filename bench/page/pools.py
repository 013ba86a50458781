"""The systems that are photographed: the demo's, under its load, and one of 64 instances."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp

from dualmap_cli.demo import DemoOptions, demo_requests, stack_options
from dualmap_cli.load import LoadOptions, Slo, run_load
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import start_child
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload

TIME_SCALE = 5.0
_DEMO = DemoOptions(requests=12_000, rate_req_s=4.2, time_scale=TIME_SCALE)


@asynccontextmanager
async def demo_pool(time_scale: float = TIME_SCALE) -> AsyncIterator[Stack]:
    """The demo's system: two routers, four instances, a rebalancer."""
    async with Stack(stack_options(replace(_DEMO, time_scale=time_scale))) as stack:
        yield stack


@asynccontextmanager
async def big_pool(instances: int = 64) -> AsyncIterator[Stack]:
    """A router, a rebalancer and many real workers and simulated engines: the workers share one process."""
    stack = Stack(StackOptions(routers=0, rebalancers=0, workers=0, time_scale=TIME_SCALE))
    stack.store = EmbeddedStore()
    try:
        await stack.store.start()
        urls = await stack.start_engines(instances)
        command = [sys.executable, "-m", "bench.page.many_workers", stack.redis_url, stack.options.pool]
        stack.children["worker-all"] = start_child(
            [*command, *urls], "workers", stack.logs / "worker-all.log"
        )
        router, rebalancer = stack.start_router(), stack.start_rebalancer()
        await stack.event(rebalancer, "rebalancer.ready")
        stack.router_urls.append(str((await stack.event(router, "router.ready"))["url"]))
        await stack.wait_ready(instances, 60.0)
        yield stack
    finally:
        await stack.stop()


@asynccontextmanager
async def loaded(stack: Stack, requests: list[TimedRequest]) -> AsyncIterator[None]:
    """A workload on the system meanwhile; what has not ended is cancelled."""
    options = LoadOptions(
        model="sim-model",
        time_scale=stack.options.time_scale,
        slo=Slo(ttft_s=5.0),
        extra_body={"ignore_eos": True},
    )
    load = asyncio.create_task(run_load(requests, stack.router_urls, options))
    try:
        yield
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)


def chat_requests() -> list[TimedRequest]:
    """The demo's conversations."""
    return demo_requests(_DEMO)


def many_requests() -> list[TimedRequest]:
    """Conversations for 64 instances: as many a second as this machine's cores can carry."""
    shape = {"user_tokens": 6000, "answer_tokens": 60}
    return make_workload("chat", Traffic(9.0, 12_000, None, 3), shape)


async def slow_the_busiest(stack: Stack, factor: float) -> str:
    """Slow down the engine behind which most waits, which no router could foresee; returns its URL."""
    async with aiohttp.ClientSession() as http, http.get(f"{stack.router_urls[0]}/ui/snapshot") as response:
        instances = (await response.json())["instances"]
    busiest = max(instances, key=lambda instance: instance["booked_s"])
    url = stack.engine_urls[int(busiest["name"].rpartition("-")[2]) - 1]
    await slow_down(url, factor)
    return url


async def slow_down(engine_url: str, factor: float) -> None:
    """Make an engine slower, or itself again with 1."""
    async with aiohttp.ClientSession() as http:
        body = {"slow_down": factor}
        async with http.post(f"{engine_url}/admin/faults", json=body) as response:
            response.raise_for_status()
