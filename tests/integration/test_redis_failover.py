"""The server that holds the pool is killed under load; Sentinels or the Cluster promote another: no request fails."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.access import AccessSettings
from dualmap_service.store import Store
from dualmap_sim.workloads import Traffic, make_workload

from ..certificates import Authority
from ..redis_processes import Server, Tls, tls_program
from ..redis_topologies import cluster, watched_master
from .load_checks import MODEL, assert_all_once, assert_at_rest, holds, metric, under_load, until

_PROMOTED_S = 15.0
"""A second of silence, the vote, the promotion."""
_SHARED_S = 10.0
"""From the promotion to shared decisions: the other Sentinels hear of it, and the next try is a second away at most."""


@dataclass
class Redis:
    url: str
    flags: dict[str, str]
    """Of every service, besides the URL."""
    holder: Callable[[], Awaitable[Server]]
    """The server that holds the pool."""


@pytest.fixture(params=["redis+sentinel", "redis+cluster", "rediss+sentinel", "rediss+cluster"])
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Redis]:
    """Those with `rediss` speak TLS alone and have passwords, the Sentinels one of their own."""
    scheme, _, kind = request.param.partition("+")
    tls = _tls(tmp_path / "pem") if scheme == "rediss" else None
    flags = _flags(tls) if tls is not None else {}
    async with contextlib.AsyncExitStack() as closing:
        if kind == "sentinel":
            watched = await closing.enter_async_context(watched_master(tmp_path / "redis", tls))
            if tls is not None:
                flags["redis_sentinel_password"] = tls.sentinel_password
            yield Redis(watched.url, flags, watched.master)
        else:
            made = await closing.enter_async_context(cluster(tmp_path / "redis", tls))
            yield Redis(made.url, flags, lambda: made.owner("dm:{demo}:"))


def _tls(folder: Path) -> Tls:
    program = tls_program()
    if program is None:
        pytest.skip("no redis-server or valkey-server with TLS here: `make test-compose` has one")
    authority = Authority(folder)
    return Tls(program, authority, authority.issue("redis"))


def _flags(tls: Tls) -> dict[str, str]:
    """A client's certificate, and whom it trusts."""
    return {
        "redis_ca_file": tls.authority.ca_file,
        "redis_cert_file": tls.pem.cert_file,
        "redis_key_file": tls.pem.key_file,
    }


async def _decides_alone(stack: Stack, url: str) -> bool:
    """Whether a router does, by what its answers say; the request itself must not fail."""
    body = {"model": MODEL, "prompt": "who decides?", "max_tokens": 1}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers.get("x-dualmap-degraded") == "local"


async def test_a_killed_server_costs_no_request(redis: Redis) -> None:
    options = StackOptions(
        routers=2, workers=2, time_scale=4.0, slo_s=30.0, redis_url=redis.url, shared_flags=redis.flags
    )
    async with Stack(options) as stack:
        lost = await redis.holder()

        async def alone() -> bool:
            return any([await _decides_alone(stack, url) for url in stack.router_urls])

        async def shared() -> bool:
            return not any([await _decides_alone(stack, url) for url in stack.router_urls])

        async def promoted() -> bool:
            return await redis.holder() is not lost

        shape = {"system_tokens": 1024, "answer_tokens": 60}
        streamed = make_workload("chat", Traffic(5.0, 160, seed=7), shape)
        whole = make_workload("chat", Traffic(1.0, 32, seed=8), shape)
        assert await shared()
        async with under_load(stack, (streamed, True), (whole, False)) as load:
            await until(lambda: holds(stack, "worker-1", running=1), 20, "work on worker-1")
            lost.kill()
            await until(alone, 5.0, "decisions without the store")
            await until(promoted, _PROMOTED_S, "another server in its place")
            await until(shared, _SHARED_S, "decisions with the new one")
            # What was killed comes back as a replica: nobody takes it for what it was.
            lost.start()
            await until(lost.answers, 10.0, "the old one, back")
            records = await load.records()
        await assert_all_once(stack, records)
        assert await shared()
        assert await redis.holder() is not lost
        assert await metric(stack.router_urls[0], "dualmap_local_decisions_total") > 0
        await stack.wait_ready(2)
        await assert_at_rest(stack)


async def test_sentinels_with_a_password_of_their_own(tmp_path: Path) -> None:
    tls = _tls(tmp_path / "pem")
    async with watched_master(tmp_path / "redis", tls) as watched:
        for password, comes_in in ((tls.sentinel_password, True), (tls.password, False), ("", False)):
            flags = {**_flags(tls), "redis_sentinel_password": password}
            store = Store(AccessSettings(redis_url=watched.url, **flags), "test")
            assert await store.start(wait_s=2.0) == comes_in, password
            await store.close()
