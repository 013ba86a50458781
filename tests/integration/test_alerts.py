"""The alerts of deploy/prometheus on the real system: a real Prometheus sees real faults begin and end.

Skipped where there is no Prometheus: `apt-get install --no-install-recommends prometheus`.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions

from ..metric_list import ROOT, rules
from ..needs import needs
from .conftest import chat, faults, leftovers, running, unique_text
from .load_checks import fetch, until
from .prometheus import SPEED, Prometheus, watching

pytestmark = [needs("prometheus"), pytest.mark.timeout(240)]
_CLIENTS = 10
_THINK_S = 0.4
"""Between an answer and the next request: a window full of fast ones outweighs the few that slow engines give."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    yield from running(StackOptions(routers=2, workers=3, rebalancers=1, time_scale=8.0))


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with asyncio.Runner() as runner:
        ready = runner.run(stack.event("rebalancer-1", "rebalancer.ready"))
        folder: Path = tmp_path_factory.mktemp("prometheus")
        with watching(folder, stack.router_urls, [str(ready["metrics_address"])]) as server:
            runner.run(until(server.ready, 30, "Prometheus answers"))

            async def all_up() -> bool:
                return await server.query("sum(up)") == [3.0]

            runner.run(until(all_up, 30, "every target is scraped"))
            yield server


@asynccontextmanager
async def asked(
    stack: Stack, http: aiohttp.ClientSession, again: bool = False, **headers: str
) -> AsyncIterator[None]:
    """Clients that stream one answer after the other, each of a prompt of its own, or always of the same."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    stop = asyncio.Event()

    async def one(number: int) -> None:
        url = stack.router_urls[number % len(stack.router_urls)]
        text = unique_text(8000)
        while not stop.is_set():
            text = text if again else unique_text(8000)
            body = chat(text, stream=True)
            async with http.post(f"{url}/v1/chat/completions", json=body, headers=named) as answer:
                await answer.read()
                assert answer.status == 200
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _THINK_S)

    clients = [asyncio.create_task(one(number)) for number in range(_CLIENTS)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*clients)


@asynccontextmanager
async def slow(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[None]:
    """Every engine sixty times slower: 1.5 s a prompt, where 0.6 s is the objective."""
    for url in stack.engine_urls:
        await faults(http, url, slow_down=60.0)
    yield
    for url in stack.engine_urls:
        await faults(http, url, reset=True)


async def test_slow_engines_burn_the_objective(
    stack: Stack, prometheus: Prometheus, http: aiohttp.ClientSession
) -> None:
    # The first test here: the long windows remember whatever came before.
    alerts = ("DualMapSloBurnFast", "DualMapSloBurnSlow")
    async with asked(stack, http):
        async with slow(stack, http):
            await prometheus.fire(*alerts)
        await prometheus.clear(*alerts)
    assert (await leftovers(stack)).clean


async def test_nothing_fires_while_all_is_well(
    stack: Stack, prometheus: Prometheus, http: aiohttp.ClientSession
) -> None:
    # Longer than most alerts wait, and than their short windows.
    watch_s = 900 / SPEED
    async with asked(stack, http):
        [began_s] = await prometheus.query("vector(time())")

        async def watched() -> bool:
            assert await prometheus.firing() == set()
            [now_s] = await prometheus.query("vector(time())")
            return now_s - began_s > watch_s

        await until(watched, 60, "a quarter of an hour at that speed")
        assert await prometheus.query("sum(increase(dualmap_slo_total[5s]))") > [20.0]
    assert {rule["alert"] for rule in rules("alerts.yml")} == await loaded(prometheus)
    assert (await leftovers(stack)).clean


async def test_rules_and_dashboard_have_something_to_show(
    stack: Stack, prometheus: Prometheus, http: aiohttp.ClientSession
) -> None:
    board = json.loads((ROOT / "deploy/grafana/dashboards/dualmap.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked_for = {query.replace("$pool", "demo").replace("$__rate_interval", "5s") for query in queries}
    asked_for |= {f'{rule["record"]}{{pool="demo"}}' for rule in rules("recording.yml")}
    async with asked(stack, http, again=True):

        async def silent() -> set[str]:
            return {query for query in asked_for if not await prometheus.query(query)}

        # No request was moved off a queue yet, and so none has an outcome.
        moves = {query for query in asked_for if "outcome" in query}
        assert moves

        async def all_answer() -> bool:
            return await silent() <= moves

        await until(all_answer, 60, "every query has data")
    assert (await leftovers(stack)).clean


async def loaded(prometheus: Prometheus) -> set[str]:
    text = await fetch(f"{prometheus.url}/api/v1/rules?type=alert")
    return {rule["alert"] for rule in rules("alerts.yml") if f'"{rule["alert"]}"' in text}


async def test_queues_that_nobody_can_take_over_are_a_hot_spot(
    stack: Stack, prometheus: Prometheus, http: aiohttp.ClientSession
) -> None:
    # All of them can be in time, so that none is served after the others; and no instance is better off.
    async with asked(stack, http, x_dualmap_slo_ttft_ms="60000"):
        async with slow(stack, http):
            await prometheus.fire("DualMapHotspot")
        await prometheus.clear("DualMapHotspot")
    assert (await leftovers(stack)).clean


async def test_redis_away_is_told_and_so_is_its_return(
    stack: Stack, prometheus: Prometheus, http: aiohttp.ClientSession
) -> None:
    # The leader's lease lapses with it.
    alerts = ("DualMapStoreAway", "DualMapLocalDecisions", "DualMapNoLeader")
    assert stack.store is not None
    async with asked(stack, http):
        stack.store.pause()
        try:
            await prometheus.fire(*alerts)
        finally:
            stack.store.resume()
        await prometheus.clear(*alerts)
    assert (await leftovers(stack)).clean


async def test_a_rebalancer_that_hangs_leaves_the_pool_without_a_leader(
    stack: Stack, prometheus: Prometheus
) -> None:
    child = stack.children["rebalancer-1"]
    child.process.send_signal(signal.SIGSTOP)
    try:
        await prometheus.fire("DualMapNoLeader", "DualMapTargetDown")
    finally:
        child.process.send_signal(signal.SIGCONT)
    await prometheus.clear("DualMapNoLeader", "DualMapTargetDown")


async def test_an_instance_that_dies_is_missed_until_it_is_back(stack: Stack, prometheus: Prometheus) -> None:
    await stack.children["worker-2"].kill()
    await prometheus.fire("DualMapInstanceGone")
    stack.start_again("worker-2")
    await prometheus.clear("DualMapInstanceGone")
    await stack.wait_ready(3)
