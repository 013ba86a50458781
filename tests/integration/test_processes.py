"""Several router processes on one port: each takes its share, answers alone at its own, and is replaced if it dies."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.ports import free_ports

from ..waiting import eventually
from .conftest import chat, leftovers, post, running, unique_text

_START_S = 60.0


@pytest.fixture(scope="module")
def pool() -> Iterator[Stack]:
    """A router beside those that a test starts, and what they need."""
    yield from running(StackOptions(routers=1, workers=2, time_scale=4.0))


class Several:
    """Two processes on one port."""

    def __init__(self, stack: Stack, name: str, port: int, http: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.own_urls = [f"http://127.0.0.1:{port + number}" for number in (1, 2)]
        self._http = http

    def said(self, event: str) -> list[dict[str, Any]]:
        """All log lines with this event."""
        text = (self.stack.logs / f"{self.name}.log").read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def pid(self, process: int) -> int:
        """Of the newest process of that number."""
        started = [line for line in self.said("router.process_started") if line["number"] == process]
        return int(started[-1]["pid"])

    async def ready(self, url: str) -> str | None:
        """Who answers there, once it reaches both instances."""
        try:
            async with self._http.get(f"{url}/readyz") as response:
                state = await response.json()
        except aiohttp.ClientError:
            return None
        return str(state["router"]) if len(state["instances"]) == 2 else None

    async def ask(self, **fields: Any) -> str:
        """Who answers a request on a new connection."""
        async with aiohttp.ClientSession() as http:
            status, _, headers = await post(
                http, self.url, "/v1/chat/completions", chat(unique_text(), **fields)
            )
        assert status == 200
        return headers["x-dualmap-router"]


@asynccontextmanager
async def several(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Several]:
    """Two processes that are ready; after it they have given everything back."""
    port = free_ports(3)
    name = stack.start_router(processes=2, port=port)
    both = Several(stack, name, port, http)
    for url in both.own_urls:
        await eventually(lambda url=url: both.ready(url), _START_S)  # type: ignore[misc]
    yield both
    assert (await leftovers(stack, urls=[*stack.router_urls, *both.own_urls])).clean
    assert await stack.children.pop(name).stop(60.0) == 0


async def test_both_take_connections_and_each_answers_alone_at_its_own_port(
    pool: Stack, http: aiohttp.ClientSession
) -> None:
    async with several(pool, http) as both:
        names = [await both.ready(url) for url in both.own_urls]
        assert names == [f"{both.name}-1", f"{both.name}-2"]
        assert {await both.ask() for _ in range(40)} == set(names)


async def test_one_that_is_killed_is_replaced_while_the_other_serves(
    pool: Stack, http: aiohttp.ClientSession
) -> None:
    async with several(pool, http) as both:
        killed = both.pid(1)
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: both.said("router.process_ended"))
        assert await both.ask() == f"{both.name}-2"
        [ended] = both.said("router.process_ended")
        assert (ended["number"], ended["status"]) == (1, -signal.SIGKILL)
        assert await eventually(lambda: both.ready(both.own_urls[0]), _START_S) == f"{both.name}-1"
        assert both.pid(1) != killed


async def test_told_to_stop_all_of_them_answer_what_is_under_way(
    pool: Stack, http: aiohttp.ClientSession
) -> None:
    async with several(pool, http) as both:
        answers = [asyncio.create_task(both.ask(max_tokens=200)) for _ in range(8)]
        await asyncio.sleep(0.3)
        pids = [both.pid(1), both.pid(2)]
        both.stack.children[both.name].process.terminate()
        assert set(await asyncio.gather(*answers)) <= {f"{both.name}-1", f"{both.name}-2"}
        assert await both.stack.children[both.name].wait(_START_S) == 0
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        both.own_urls.clear()


async def test_a_port_that_is_taken_ends_all(pool: Stack) -> None:
    port = free_ports(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        name = pool.start_router(processes=2, port=port)
        child = pool.children.pop(name)
        assert await child.wait(_START_S) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in child.log_tail(20_000)
