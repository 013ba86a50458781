"""One tenant floods, another goes on asking: what that costs it, against asking alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions

from ..waiting import eventually
from .conftest import completion, error_of, post, unique_text
from .guarded import ACME, OTHER, TEXT, timed, write_keys
from .load_checks import assert_at_rest, describe

PROMPT_BYTES, FLOOD, ASKED = 32_000, 30, 3
"""Prompts of about a second of prefill on the simulated engine."""
FACTOR = 10.0
"""Of the TTFT alone: about two for what runs and a turn, and room for a busy machine."""
ALL_IN_TIME = {"x-dualmap-slo-ttft-ms": "600000"}
"""What a flood says that wants every place before those who come later."""


async def ask(stack: Stack, http: aiohttp.ClientSession) -> list[float]:
    """TTFTs of a tenant that asks one request after the other."""
    [url] = stack.router_urls
    return [(await timed(http, url, OTHER, unique_text(PROMPT_BYTES)))[0] for _ in range(ASKED)]


URGENT = [
    ({"x-dualmap-priority": "-2147483648"}, {}),
    ({"x-vllm-priority": "-2147483648"}, {}),
    ({}, {"priority": -2147483648}),
]
"""Headers and fields by which a flood might have itself served before everybody."""


@asynccontextmanager
async def flooded(
    stack: Stack, http: aiohttp.ClientSession
) -> AsyncIterator[list["asyncio.Task[tuple[float, int]]"]]:
    """While a tenant's requests wait; after it they have been answered."""
    [url] = stack.router_urls
    flood = [
        asyncio.create_task(timed(http, url, ACME, unique_text(PROMPT_BYTES), headers=dict(ALL_IN_TIME)))
        for _ in range(FLOOD)
    ]

    async def waits() -> bool:
        return (await describe(stack, "worker-1")).queued >= FLOOD - 5

    try:
        await eventually(waits)
        yield flood
        await asyncio.gather(*flood)
    finally:
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def times_as_long(stack: Stack, http: aiohttp.ClientSession) -> float:
    """A quiet tenant's worst TTFT under a flood, over the usual one alone."""
    alone_s = median(await ask(stack, http))
    async with flooded(stack, http) as flood:
        under_flood_s = max(await ask(stack, http))
        still_waits = sum(not task.done() for task in flood)
    print(f"alone {alone_s:.3f} s, under a flood {under_flood_s:.3f} s, {still_waits} of it left")
    return under_flood_s / alone_s


async def test_a_flood_has_itself_refused_and_nobody_else(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    flags = {"api_keys_file": write_keys(tmp_path / "keys.json"), "shed_at": 0.5}
    options = StackOptions(routers=1, workers=1, rebalancers=0, time_scale=4.0, router_flags=flags)
    async with Stack(options) as stack:
        [url] = stack.router_urls
        async with flooded(stack, http):
            status, answer, _ = await post(
                http, url, TEXT, completion(unique_text()), authorization=f"Bearer {ACME}"
            )
            assert (status, error_of(answer)["code"]) == (429, "overloaded")
            await timed(http, url, OTHER, unique_text())
        await assert_at_rest(stack)


@pytest.mark.parametrize(
    ("flags", "is_fair"),
    [
        ({}, True),
        ({"tenant_fairness": "false"}, False),
        ({"order": "fcfs"}, False),
    ],
    ids=["default", "late-last without turns", "fcfs"],
)
async def test_a_flood_costs_another_tenant_no_more_than_a_few_times_its_ttft(
    tmp_path: Path, http: aiohttp.ClientSession, flags: dict[str, str], is_fair: bool
) -> None:
    options = StackOptions(
        routers=1,
        workers=1,
        rebalancers=0,
        time_scale=4.0,
        router_flags={"api_keys_file": write_keys(tmp_path / "keys.json")},
        worker_flags=flags,
    )
    async with Stack(options) as stack:
        assert (await times_as_long(stack, http) <= FACTOR) == is_fair
        await assert_at_rest(stack)


async def test_a_flood_that_calls_itself_urgent_is_refused(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """Priorities are above tenants' turns: let in, such a flood would be served whole before anybody else."""
    flags = {"api_keys_file": write_keys(tmp_path / "keys.json")}
    options = StackOptions(routers=1, workers=1, rebalancers=0, time_scale=4.0, router_flags=flags)
    async with Stack(options) as stack:
        [url] = stack.router_urls

        async def urgent(number: int) -> int:
            headers, fields = URGENT[number % len(URGENT)]
            body = completion(unique_text(PROMPT_BYTES), **fields)
            named = {"authorization": f"Bearer {ACME}", **headers}
            async with http.post(url + TEXT, json=body, headers=named) as response:
                await response.read()
                return response.status

        alone_s = median(await ask(stack, http))
        flood = asyncio.gather(*(urgent(number) for number in range(FLOOD)))
        under_flood_s = max(await ask(stack, http))
        assert set(await flood) == {403}
        assert under_flood_s <= FACTOR * alone_s
        await assert_at_rest(stack)
