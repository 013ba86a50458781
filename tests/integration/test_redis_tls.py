"""The whole system on a Redis that speaks TLS only, wants client certificates, and has a user per service."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from dualmap_cli.settings_options import as_arguments
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.access import AccessSettings
from dualmap_service.credentials import PemFiles
from dualmap_service.errors import StoreError
from dualmap_service.ports import free_ports
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

from ..certificates import Authority
from ..redis_processes import servers, tls_program
from ..tls_front import tls_front
from .load_checks import assert_all_once, assert_at_rest, metric, prompts, replay

ACL = Path(__file__).parents[2] / "deploy/redis/users.acl"
ADMIN = "user admin on >change-me-admin ~* &* +@all\n"


@dataclass(frozen=True)
class TlsRedis:
    port: int
    authority: Authority
    client: dict[str, str]
    """Flags of a client that may come in."""

    def url(self, user: str) -> str:
        password = f"change-me-{user.removeprefix('dualmap-')}"
        return f"rediss://{user}:{password}@127.0.0.1:{self.port}/0"

    def access(self, user: str = "admin", **other: str) -> AccessSettings:
        return AccessSettings(**{"redis_url": self.url(user), **self.client, **other})


@pytest.fixture(params=["front", "server"])
async def tls_redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TlsRedis]:
    """TLS by a front before the embedded Valkey, and by a server that is built with it."""
    authority = Authority(tmp_path / "pem")
    pem = authority.issue("redis")
    client = authority.issue("client", "client")
    flags = {
        "redis_ca_file": authority.ca_file, "redis_cert_file": client.cert_file, "redis_key_file": client.key_file,
    }  # fmt: skip
    acl = tmp_path / "users.acl"
    acl.write_text(ACL.read_text() + ADMIN)
    login = {"username": "admin", "password": "change-me-admin"}
    async with contextlib.AsyncExitStack() as closing:
        running = await closing.enter_async_context(servers(tmp_path / "redis"))
        port = free_ports()
        if request.param == "front":
            await running.start(port, "--aclfile", str(acl), **login)
            context = PemFiles(authority.ca_file, pem.cert_file, pem.key_file).server_context()
            port = await closing.enter_async_context(tls_front(port, context))
        else:
            program = tls_program()
            if program is None:
                # Not of tests/needs.py: `make test-compose` runs it with the image's server, wherever CI runs.
                pytest.skip("no redis-server or valkey-server with TLS here: `make test-compose` has one")
            await running.start(
                port, "--port", "0", "--tls-port", str(port), "--tls-cert-file", pem.cert_file,
                "--tls-key-file", pem.key_file, "--tls-ca-cert-file", authority.ca_file, "--aclfile", str(acl),
                program=program, ssl=True, ssl_ca_certs=authority.ca_file, ssl_certfile=client.cert_file,
                ssl_keyfile=client.key_file, **login,
            )  # fmt: skip
        yield TlsRedis(port, authority, flags)


async def test_each_service_with_its_own_user(tls_redis: TlsRedis) -> None:
    options = StackOptions(
        routers=2,
        workers=2,
        rebalancers=2,
        time_scale=8.0,
        redis_url=tls_redis.url("admin"),
        shared_flags=tls_redis.client,
        router_flags={"redis_url": tls_redis.url("dualmap-router")},
        worker_flags={"redis_url": tls_redis.url("dualmap-worker")},
        rebalancer_flags={"redis_url": tls_redis.url("dualmap-rebalancer")},
    )
    async with Stack(options) as stack:
        result = await replay(stack, prompts("tls", rate_req_s=20.0, count=60, tokens=4096))
        await assert_all_once(stack, result.records)
        # Every router decided with the store, but for calls that a busy machine answered too late; that nobody was
        # refused a command is for the logs to say, at the end.
        for url in stack.router_urls:
            assert await metric(url, "dualmap_store_available") == 1.0
            assert await metric(url, "dualmap_local_decisions_total") < 20
        await assert_at_rest(stack)
        # A worker that leaves, a router that dies: what is done then is allowed too.
        assert await stack.children["worker-2"].stop(10.0) == 0
        stack.children["router-2"].process.kill()
        await stack.event("rebalancer-1", "rebalancer.ready")
        await _operator_commands(stack, tls_redis)
        for name in stack.children:
            assert "NOPERM" not in (stack.logs / f"{name}.log").read_text(), name


async def _operator_commands(stack: Stack, tls_redis: TlsRedis) -> None:
    flags = {"redis_url": tls_redis.url("dualmap-operator"), "pool": stack.options.pool, **tls_redis.client}
    given = as_arguments(flags)
    for command in (["doctor", "--json"], ["plan", "add", "worker-9", "--json"]):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dualmap_cli", *command, *given,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, (out, err)
        if command[0] == "doctor":
            says = {finding["about"]: finding["state"] for finding in json.loads(out)["findings"]}
            assert says["store"] == says["rebalancer"] == says["worker-1"] == "ok", says


def works(access: AccessSettings) -> bool:
    """Whether a store on uvloop, as in the services, gets calls answered; a large one too."""

    async def body() -> bool:
        store = Store(access, "test")
        try:
            if not await store.start(wait_s=1.0):
                return False
            await store.function("members", PoolKeys("p").prefix, "", 3000)
            await store.command("SET", "dm:{p}:large", b"x" * 5_000_000, deadline_s=10.0)
            return len(await store.command("GET", "dm:{p}:large", deadline_s=10.0)) == 5_000_000
        finally:
            await store.close()

    return bool(uvloop.run(body()))


async def test_who_belongs_comes_in(tls_redis: TlsRedis) -> None:
    assert await asyncio.to_thread(works, tls_redis.access())


@pytest.mark.parametrize(
    "wrong", ["ca", "no certificate", "another CA's certificate", "password", "plaintext"]
)
async def test_who_does_not_belong_stays_out(tls_redis: TlsRedis, wrong: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    pem = stranger.issue("client", "client")
    access = {
        "ca": tls_redis.access(redis_ca_file=stranger.ca_file),
        "no certificate": tls_redis.access(redis_cert_file="", redis_key_file=""),
        "another CA's certificate": tls_redis.access(
            redis_cert_file=pem.cert_file, redis_key_file=pem.key_file
        ),
        "password": tls_redis.access(redis_url=tls_redis.url("admin").replace("change-me", "guessed")),
        "plaintext": AccessSettings(redis_url=tls_redis.url("admin").replace("rediss", "redis")),
    }[wrong]
    assert not await asyncio.to_thread(works, access)


async def test_a_user_can_do_no_more_than_it_needs(tls_redis: TlsRedis) -> None:
    store = Store(tls_redis.access("dualmap-worker"), "test")
    try:
        assert await store.start()
        for command in (("FLUSHALL",), ("KEYS", "*"), ("GET", "other"), ("CONFIG", "GET", "*")):
            with pytest.raises(StoreError, match="NOPERM"):
                await store.command(*command)
    finally:
        await store.close()
