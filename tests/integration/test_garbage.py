"""Garbage on the inner wires, and settings that do not exist."""

import asyncio
import contextlib
import json
import os
import sys
import time
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest
import zmq
from redis.asyncio import Redis

from dualmap_cli.stack import Stack
from dualmap_wire.redis_functions import function_name
from dualmap_wire.redis_keys import LEASE_MS, PoolKeys
from dualmap_wire.telemetry import QUEUE_TOPIC, Registration, decode_registration, encode_registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub, WorkerDataStub

from ..waiting import eventually
from .conftest import chat, post, unique_text


async def served(http: aiohttp.ClientSession, stack: Stack) -> None:
    for url in stack.router_urls:
        status, answer, _ = await post(http, url, "/v1/chat/completions", chat(unique_text()))
        assert status == 200, answer


def log_has(stack: Stack, name: str, event: str) -> bool:
    return f'"{event}"' in (stack.logs / f"{name}.log").read_text()


async def test_telemetry_that_is_garbage(system: Stack, http: aiohttp.ClientSession) -> None:
    """A registered instance whose telemetry socket says anything, and whose worker does not exist."""
    keys = PoolKeys("demo")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.PUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    fake = Registration(
        instance="fake",
        pool="demo",
        model="sim-model",
        grpc_address="127.0.0.1:1",
        telemetry_address=f"tcp://127.0.0.1:{port}",
        generation=1,
    )
    redis: Any = Redis.from_url(system.redis_url)
    seq = (0).to_bytes(8, "big")
    report: dict[str, Any] = {"instance": "fake", "pool": "demo", "speed": "fast"}
    messages = [
        [QUEUE_TOPIC],
        [QUEUE_TOPIC, b"", b""],
        [QUEUE_TOPIC, seq, b"\xc1" * 100],
        [QUEUE_TOPIC, seq, b"\x00" * 100_000],
        [QUEUE_TOPIC, seq, msgspec.msgpack.encode(report)],
        [QUEUE_TOPIC, seq, msgspec.msgpack.encode([[[]]] * 1000)],
        [QUEUE_TOPIC, seq, b"\x91" * 100_000],
        [QUEUE_TOPIC, b"x" * 9, b"y", b"z"],
    ]
    try:
        for state in ("active", "draining"):
            registration = encode_registration(msgspec.structs.replace(fake, state=state))
            await redis.fcall(
                function_name("register"), 1, keys.prefix, "fake", registration, "1", str(LEASE_MS)
            )

            def heard() -> bool:
                for message in messages:
                    publisher.send_multipart(message)
                return log_has(system, "rebalancer-1", "telemetry.garbage")

            await eventually(heard)
            # The routers know of it and cannot reach it: nobody notices.
            await served(http, system)
    finally:
        await redis.fcall(function_name("deregister"), 1, keys.prefix, "fake", "1")
        await redis.aclose()
        publisher.close(0)
        context.term()
    assert system.children["rebalancer-1"].running
    await system.wait_ready(2)


async def test_a_registration_that_is_garbage(system: Stack, http: aiohttp.ClientSession) -> None:
    keys = PoolKeys("demo")
    redis: Any = Redis.from_url(system.redis_url)
    try:
        await redis.fcall(function_name("register"), 1, keys.prefix, "\xff junk", b"{]", "1", str(LEASE_MS))
        for name in ("router-1", "router-2", "rebalancer-1"):
            await eventually(lambda name=name: log_has(system, name, "registry.bad_entry"))
        await served(http, system)
    finally:
        await redis.fcall(function_name("deregister"), 1, keys.prefix, "\xff junk", "1")
        await redis.aclose()


async def worker_address(stack: Stack, name: str) -> str:
    redis: Any = Redis.from_url(stack.redis_url)
    try:
        return decode_registration(await redis.hget(PoolKeys("demo").instances, name)).grpc_address
    finally:
        await redis.aclose()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, bytes(range(256)) * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
    ],
    ids=["http1", "zeros", "bytes", "http2"],
)  # fmt: skip
async def test_bytes_that_are_not_grpc(system: Stack, http: aiohttp.ClientSession, data: bytes) -> None:
    host, port = (await worker_address(system, "worker-1")).split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    writer.close()
    await served(http, system)
    assert system.children["worker-1"].running


async def ended(call: Any) -> None:
    """Return when the worker has ended a session, with or without an error."""
    async with asyncio.timeout(10):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass


async def test_frames_that_mean_nothing(system: Stack, http: aiohttp.ClientSession) -> None:
    address = await worker_address(system, "worker-1")
    async with grpc.aio.insecure_channel(address) as channel:
        raw = channel.stream_stream("/dualmap_wire.v1.WorkerData/Session")
        for first in (b"\xff\xff\xff", b"", pb.RouterFrame(cancels=[1]).SerializeToString()):
            call = raw()
            await call.write(first)
            await ended(call)
        stranger = WorkerDataStub(channel).Session()
        await stranger.write(pb.RouterFrame(hello=pb.Hello(router="x", pool="another")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stranger.read()
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        # A session that then sends a frame that is none, with a request under way.
        call = raw()
        hello = pb.RouterFrame(hello=pb.Hello(router="mad", pool="demo"))
        submit = pb.Submit(stream=1, request_id="mad", method="POST", path="/v1/completions", queued=True)
        submit.body = json.dumps({"prompt": "a", "max_tokens": 50_000}).encode()
        for frame in (hello, pb.RouterFrame(submits=[submit], cancels=[7, 8, 9])):
            await call.write(frame.SerializeToString())
        await call.read()
        await call.write(b"\xff\xff\xff")
        await ended(call)
    await served(http, system)


async def test_control_calls_about_nothing(system: Stack) -> None:
    async with grpc.aio.insecure_channel(await worker_address(system, "worker-1")) as channel:
        control = WorkerControlStub(channel)
        moves = [pb.MigrateMove(request_id="nobody", target="nowhere"), pb.MigrateMove()]
        reply = await control.Migrate(pb.MigrateRequest(moves=moves, fence=0), timeout=10)
        assert not reply.moved
        described = await control.Describe(pb.DescribeRequest(), timeout=10)
        assert (described.instance, described.pool, described.state) == ("worker-1", "demo", "active")
        assert not (await control.ListQueue(pb.ListQueueRequest(), timeout=10)).entries


# Settings


async def start(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status and output of `dualmap <arguments>`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DUALMAP_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", *arguments, env={**environ, **variables},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.parametrize(
    ("service", "variable", "near"),
    [
        ("router", "DUALMAP_ROUTER_PROT", "DUALMAP_ROUTER_PORT"),
        ("worker", "DUALMAP_WORKER_ENGIN_URL", "DUALMAP_WORKER_ENGINE_URL"),
        ("rebalancer", "DUALMAP_REDIS_ULR", "DUALMAP_REDIS_URL"),
    ],
)
async def test_a_misspelt_variable_stops_the_start(service: str, variable: str, near: str) -> None:
    status, said = await start(service, **{variable: "1"})
    assert status == 2
    [line] = said.strip().splitlines()
    assert f"{variable}; did you mean {near}?" in line


@pytest.mark.parametrize("service", ["router", "worker", "rebalancer"])
async def test_flags_that_stop_the_start(service: str) -> None:
    (status, said), (status_of_bad, said_of_bad) = await asyncio.gather(
        start(service, "--nonsense"), start(service, "--pool=p", **{f"DUALMAP_{service.upper()}_HOSTS": "x"})
    )
    assert status == status_of_bad == 2
    assert "--nonsense" in said.strip().splitlines()[-1]
    assert f"DUALMAP_{service.upper()}_HOSTS" in said_of_bad


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("router", "--port=99999"), "--port"),
        (("router", "--port=http"), "--port"),
        (("router", "--policy=best"), "policy"),
        (("router", "--slo-ttft-s=0"), "--slo-ttft-s"),
        (("worker", "--order=random"), "order"),
        (("worker", "--hold-kv-use=2"), "--hold-kv-use"),
        (("router", "--log-level=loud"), "log-level"),
        (("router", "--redis-url=http://127.0.0.1:1"), "redis-url"),
    ],
)
async def test_values_that_stop_the_start(arguments: tuple[str, ...], named: str) -> None:
    started = time.monotonic()
    status, said = await start(*arguments)
    assert status == 2, said
    [line] = said.strip().splitlines()
    assert named in line.replace("_", "-")
    assert time.monotonic() - started < 25


async def test_a_port_that_is_taken(system: Stack) -> None:
    port = system.router_urls[0].rpartition(":")[2]
    status, said = await start("router", f"--port={port}", f"--redis-url={system.redis_url}", "--pool=taken")
    assert status == 1
    assert port in said
