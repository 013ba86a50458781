"""`dualmap doctor`: look at a running system and name what is wrong, and what to do."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import aiohttp
import click
import grpc
import msgspec
import zmq
from redis.exceptions import RedisError
from rich.console import Console

from dualmap_cli.leftovers import describe
from dualmap_cli.registry import pool_options
from dualmap_service.access import AccessSettings
from dualmap_service.redis_servers import redis_client
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import library, parse_perf
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import QUEUE_TOPIC, Registration, decode_registration, decode_report
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.capabilities import LACKS

_TELEMETRY_WAIT_S = 5.0
_FOLD_POLL_S = 0.1
_FRESH_US = 5_000_000
_MARK = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "bad": "[red]bad [/red]"}


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at: how it is, and what to do if it is not well."""

    state: Literal["ok", "warn", "bad"]
    about: str
    says: str
    do: str = ""


@click.command("doctor")
@pool_options
@click.option("--router", "routers", multiple=True, metavar="URL", help="A router to ask; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON object.")
def doctor(access: AccessSettings, routers: tuple[str, ...], as_json: bool) -> None:
    """Check store, instances, telemetry, rebalancer and routers; exits with 1 if something is bad."""
    findings = asyncio.run(_examine(access, routers))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"findings": findings}), indent=2).decode())
    else:
        console = Console(soft_wrap=True)
        for finding in findings:
            console.print(f"{_MARK[finding.state]} {finding.about}: {finding.says}", highlight=False)
            if finding.do:
                console.print(f"       {finding.do}", style="bold", highlight=False)
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)


async def _examine(access: AccessSettings, routers: tuple[str, ...]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        async with redis_client(access) as redis:
            async for finding in _store(redis, access):
                findings.append(finding)
    except (RedisError, OSError) as exc:
        findings.append(
            Finding(
                "bad",
                "store",
                f"no answer from it: {exc}",
                "Check --redis-url. Routers go on by themselves meanwhile, each with its own view.",
            )
        )
    for url in routers:
        findings.append(await _router(url.rstrip("/")))
    return findings


async def _store(redis: Any, access: AccessSettings) -> AsyncIterator[Finding]:
    """The store itself, then what is registered in it."""
    keys = PoolKeys(access.pool)
    info = await redis.info("server")
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    old = int(version.split(".")[0]) < 7
    yield Finding(
        "bad" if old else "ok",
        "store",
        f"{name} {version}",
        "Functions need Redis 7 or Valkey 8." if old else "",
    )
    loaded = await redis.execute_command("FUNCTION", "LIST", "LIBRARYNAME", f"dualmap_{library()[0]}")
    yield (
        Finding("ok", "functions", f"this release's library, {library()[0]}, is loaded")
        if loaded
        else Finding(
            "warn",
            "functions",
            "this release's library is not loaded",
            "A service of this release loads it when it starts.",
        )
    )
    leader = await redis.get(keys.key("leader"))
    yield (
        Finding("ok", "rebalancer", f"{leader.decode()} leads")
        if leader
        else Finding(
            "bad",
            "rebalancer",
            "nobody leads",
            "Start `dualmap rebalancer`: without it nothing moves and telemetry goes stale.",
        )
    )
    registrations = await redis.hgetall(keys.instances)
    if not registrations:
        yield Finding(
            "bad",
            "instances",
            f"none in this pool ({keys.prefix})",
            "Start a worker, and compare its --pool.",
        )
    for packed in registrations.values():
        async for finding in _instance(redis, access, packed):
            yield finding


async def _instance(redis: Any, access: AccessSettings, packed: bytes) -> AsyncIterator[Finding]:
    keys = PoolKeys(access.pool)
    try:
        registration = decode_registration(packed)
    except WireError as exc:
        yield Finding(
            "bad",
            "instances",
            f"an entry cannot be read: {exc}",
            "Is a worker of another release registered?",
        )
        return
    name = registration.instance
    if not await redis.exists(keys.instance_lease(name)):
        yield Finding(
            "bad",
            name,
            "its lease has run out",
            "Its worker is gone or cannot reach the store; it is forgotten soon.",
        )
        return
    try:
        described = await describe(registration.grpc_address, access)
    except grpc.aio.AioRpcError as exc:
        yield Finding(
            "bad", name, f"no answer at {registration.grpc_address} ({exc.code().name})",
            "Routers cannot reach it either, unless they sit elsewhere: check --advertise-host, firewalls and "
            "certificates (--grpc-ca-file).",
        )  # fmt: skip
        return
    yield Finding(
        "ok",
        name,
        f"{described.state}, {described.queued} queued, {described.running} running, {described.sessions} routers",
    )
    for finding in _engine(name, described):
        yield finding
    if not registration.kv_tokens:
        yield Finding(
            "warn",
            name,
            "its KV cache size is unknown",
            "Set --kv-tokens, or let the engine publish vllm:cache_config_info.",
        )
    heard = await asyncio.to_thread(_listen, access, registration)
    yield (
        Finding("ok", name, "publishes telemetry")
        if heard
        else Finding(
            "bad",
            name,
            f"nothing heard at {registration.telemetry_address}",
            "The rebalancer cannot hear it either, unless its CURVE key is one that may: check port and keys.",
        )
    )
    if not await _folded(redis, keys, name):
        yield Finding(
            "bad",
            name,
            "its telemetry in the store is stale",
            "Is the leading rebalancer able to reach the worker?",
        )


def _engine(name: str, described: pb.DescribeReply) -> Iterator[Finding]:
    """What its worker misses in its engine."""
    if described.engine_version:
        yield Finding("ok", name, f"its engine says that it is version {described.engine_version}")
    for lack_name in described.engine_lacks:
        lack = LACKS.get(lack_name)
        follows, do = (lack.follows, lack.do) if lack else ("a release newer than this one says so", "")
        yield Finding("warn", name, f"its engine lacks {lack_name}: {follows}", do)


async def _folded(redis: Any, keys: PoolKeys, name: str) -> bool:
    """Whether the store holds fresh telemetry, or gets it within a moment: a system may just have started."""
    for _ in range(round(_TELEMETRY_WAIT_S / _FOLD_POLL_S)):
        perf = parse_perf(await redis.hget(keys.perf, name) or b"")
        seconds, microseconds = await redis.time()
        if perf is not None and seconds * 1_000_000 + microseconds - perf.reported_us <= _FRESH_US:
            return True
        await asyncio.sleep(_FOLD_POLL_S)
    return False


def _listen(access: AccessSettings, registration: Registration) -> bool:
    """Whether a readable report comes within a moment."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, QUEUE_TOPIC)
        access.listener().introduce(socket)
        socket.connect(registration.telemetry_address)
        if not socket.poll(int(_TELEMETRY_WAIT_S * 1000)):
            return False
        try:
            return decode_report(socket.recv_multipart()[-1]).instance == registration.instance
        except WireError:
            return False


async def _router(url: str) -> Finding:
    timeout = aiohttp.ClientTimeout(total=3)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{url}/readyz") as response:
            state = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        return Finding("bad", url, f"no router answers: {exc!r}")
    if not state["ready"]:
        return Finding(
            "bad",
            url,
            f"not ready: reaches {state['instances'] or 'no instance'}",
            "Compare its --pool and --redis-url.",
        )
    if state["store"] != "available":
        return Finding(
            "warn",
            url,
            "decides by itself: it does not reach the store",
            "Check its --redis-url and the network.",
        )
    return Finding("ok", url, f"ready, reaches {', '.join(state['instances'])}")
