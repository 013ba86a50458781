"""What is registered in the store: each instance's lease, worker, engine, telemetry and KV events."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import zmq

from dualmap_cli.doctor.clocks import Clocks, GoesBy
from dualmap_cli.doctor.finding import Finding
from dualmap_cli.leftovers import describe
from dualmap_service.access import AccessSettings
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import parse_perf
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import (
    QUEUE_TOPIC,
    QueueReport,
    Registration,
    decode_registration,
    decode_report,
)
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.capabilities import LACKS, NO_OWNERSHIP

_TELEMETRY_WAIT_S = 5.0
_FOLD_POLL_S = 0.1
_FRESH_US = 5_000_000


async def instance_findings(redis: Any, access: AccessSettings, clocks: Clocks) -> AsyncIterator[Finding]:
    """How every instance of the pool is."""
    keys = PoolKeys(access.pool)
    registrations = await redis.hgetall(keys.instances)
    if not registrations:
        yield Finding(
            "bad",
            "instances",
            f"none in this pool ({keys.prefix})",
            "Start a worker, and compare its --pool.",
        )
    for _, packed in sorted(registrations.items()):
        try:
            registration = decode_registration(packed)
        except WireError as exc:
            yield Finding(
                "bad",
                "instances",
                f"an entry cannot be read: {exc}",
                "Is a worker of another release registered?",
            )
            continue
        async for finding in _instance(redis, keys, access, registration, clocks):
            yield finding


async def _instance(
    redis: Any, keys: PoolKeys, access: AccessSettings, registration: Registration, clocks: Clocks
) -> AsyncIterator[Finding]:
    name = registration.instance
    if not await redis.exists(keys.instance_lease(name)):
        yield Finding(
            "bad",
            name,
            "its lease has run out",
            "Its worker is gone or cannot reach the store; it is forgotten soon.",
        )
        return
    asked_s = time.time()
    try:
        described = await describe(registration.grpc_address, access)
    except grpc.aio.AioRpcError as exc:
        yield Finding(
            "bad", name, f"no answer at {registration.grpc_address} ({exc.code().name})",
            "Routers cannot reach it either, unless they sit elsewhere: check --advertise-host, firewalls and "
            "certificates (--grpc-ca-file).",
        )  # fmt: skip
        return
    if described.clock_s:
        clocks.read(name, GoesBy.WORKER, described.clock_s, asked_s, time.time())
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
    report = await asyncio.to_thread(_listen, access, registration)
    if report is None:
        yield Finding(
            "bad",
            name,
            f"nothing heard at {registration.telemetry_address}",
            "The rebalancer cannot hear it either, unless its CURVE key is one that may: check port and keys.",
        )
    else:
        yield Finding("ok", name, "publishes telemetry")
        for finding in _events(name, described, report):
            yield finding
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


def _events(name: str, described: pb.DescribeReply, report: QueueReport) -> Iterator[Finding]:
    """Whether ownership follows the engine's KV events; what keeps it from that is among what the engine lacks."""
    if not NO_OWNERSHIP & set(described.engine_lacks):
        yield Finding(
            "ok",
            name,
            f"ownership follows its KV events: {report.owned_chunks} chunks"
            if report.kv_events
            else "its KV events are configured; no prompt has shown yet whether they come",
        )
    if report.kv_events_lost:
        yield Finding(
            "warn",
            name,
            f"KV events were lost for good {report.kv_events_lost} times since its worker began: what it holds was "
            "in doubt for a while",
            "Give the worker its engine's replay endpoint (--kv-replay-url). If it has it, it cannot keep up, or the "
            "engine keeps too few batches (buffer_steps in --kv-events-config).",
        )


async def _folded(redis: Any, keys: PoolKeys, name: str) -> bool:
    """Whether the store holds fresh telemetry, or gets it within a moment: a system may just have started."""
    for _ in range(round(_TELEMETRY_WAIT_S / _FOLD_POLL_S)):
        perf = parse_perf(await redis.hget(keys.perf, name) or b"")
        seconds, microseconds = await redis.time()
        if perf is not None and seconds * 1_000_000 + microseconds - perf.reported_us <= _FRESH_US:
            return True
        await asyncio.sleep(_FOLD_POLL_S)
    return False


def _listen(access: AccessSettings, registration: Registration) -> QueueReport | None:
    """Its next report; None if no readable one comes within a moment."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, QUEUE_TOPIC)
        access.listener().introduce(socket)
        socket.connect(registration.telemetry_address)
        if not socket.poll(int(_TELEMETRY_WAIT_S * 1000)):
            return None
        try:
            report = decode_report(socket.recv_multipart()[-1])
        except WireError:
            return None
        return report if report.instance == registration.instance else None
