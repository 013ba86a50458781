"""A queued request that moves between two real vLLMs is prefilled once, by the one that answers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from redis.asyncio import Redis

from dualmap_cli.leftovers import describe
from dualmap_cli.stack import Stack
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import decode_registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

from ..waiting import eventually
from .conftest import MODEL, OPTIONS
from .gauges import gauge

PROMPT = [9, 8, 7, 6] * 300


@pytest.fixture
async def one_at_a_time(engines: list[str]) -> AsyncIterator[Stack]:
    """Each instance runs one request and queues the others; nobody moves them but the test."""
    options = replace(
        OPTIONS, routers=1, rebalancers=0, engine_urls=engines, slo_s=1000.0, worker_flags={"max_running": 1}
    )
    async with Stack(options) as stack:
        yield stack


async def addresses(stack: Stack) -> dict[str, str]:
    """gRPC addresses of the workers by instance."""
    redis: Any = Redis.from_url(stack.redis_url)
    try:
        packed = (await redis.hgetall(PoolKeys(OPTIONS.pool).instances)).values()
    finally:
        await redis.aclose()
    return {found.instance: found.grpc_address for found in map(decode_registration, packed)}


async def test_a_moved_request_is_prefilled_once(one_at_a_time: Stack, http: aiohttp.ClientSession) -> None:
    stack, at = one_at_a_time, await addresses(one_at_a_time)
    url = f"{stack.router_urls[0]}/v1/completions"

    async def prompt_tokens() -> dict[str, float]:
        found = {}
        for number, engine in enumerate(stack.engine_urls, start=1):
            found[f"worker-{number}"] = await gauge(http, engine, "prompt_tokens_total")
        return found

    # 1. A long answer keeps each instance busy.
    busy: dict[str, aiohttp.ClientResponse] = {}
    long = {"model": MODEL, "prompt": [5], "max_tokens": 4000, "ignore_eos": True, "stream": True}
    while len(busy) < len(at):
        response = await http.post(url, json=long, headers={"x-dualmap-policy": "round-robin"})
        busy[response.headers["x-dualmap-instance"]] = response
    before = await prompt_tokens()

    # 2. A request waits in one of the queues.
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "cache_salt": uuid4().hex}
    waits = asyncio.create_task(http.post(url, json=body, headers={"x-request-id": "moved"}))

    async def queued_at() -> str | None:
        described = [await describe(address) for address in at.values()]
        return next((one.instance for one in described if one.queued), None)

    source = await eventually(queued_at)

    # 3. It moves to another, which has just become free.
    target = next(name for name in sorted(at) if name != source)
    busy.pop(target).close()
    async with grpc.aio.insecure_channel(at[source]) as channel:
        move = pb.MigrateMove(request_id="moved", target=target)
        reply = await WorkerControlStub(channel).Migrate(pb.MigrateRequest(moves=[move], fence=1))
    assert list(reply.moved) == ["moved"]
    answer = await waits
    said = await answer.json()
    assert answer.status == 200, said
    assert (answer.headers["x-dualmap-instance"], answer.headers["x-dualmap-moves"]) == (target, "1")
    assert answer.headers["x-dualmap-reason"] == "moved"

    # 4. Only there was it prefilled, and it says what it would have said anywhere.
    after = await prompt_tokens()
    assert {name: after[name] - before[name] for name in at} == {
        name: len(PROMPT) if name == target else 0 for name in at
    }
    for response in busy.values():
        response.close()
    async with http.post(f"{stack.engine_urls[0]}/v1/completions", json=body) as direct:
        assert said["choices"][0]["text"] == (await direct.json())["choices"][0]["text"]
