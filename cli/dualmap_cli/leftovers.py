"""What a system holds when it should hold nothing: charges, queues, open requests, buffered bytes."""

import asyncio
from collections.abc import Sequence

import aiohttp
import grpc
import msgspec

from dualmap_service.access import AccessSettings
from dualmap_service.grpc_access import grpc_access
from dualmap_service.redis_servers import redis_client
from dualmap_wire.errors import WireError
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import decode_registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

_PLAIN = AccessSettings()


class Leftovers(msgspec.Struct, frozen=True, kw_only=True):
    """All zero in a system at rest."""

    charges_s: float = 0.0
    """Booked prefill seconds in Redis; what one instance has too little does not make up for another's."""
    charges: int = 0
    """Charges by id, in Redis and in routers."""
    queued: int = 0
    sessions: int = 0
    """Requests open in routers, on their sessions and in workers."""
    buffers: int = 0
    """Bytes of requests and answers that routers and workers hold."""
    noted: int = 0
    """Requests whose KV events workers still note."""

    @property
    def clean(self) -> bool:
        """Whether nothing is left."""
        return self == Leftovers()


async def find_leftovers(
    redis_url: str, pool: str, router_urls: Sequence[str], access: AccessSettings = _PLAIN
) -> Leftovers:
    """Ask Redis, every router and every worker; `access` has the certificates, if any."""
    keys = PoolKeys(pool)
    async with redis_client(msgspec.structs.replace(access, redis_url=redis_url, pool=pool)) as redis:
        booked = await redis.hvals(keys.charges)
        charges = 0
        for router in await redis.smembers(keys.routers):
            charges += await redis.hlen(keys.router_charges(router.decode()))
        registered = await redis.hgetall(keys.instances)
        for instance in registered:
            booked += await redis.hvals(keys.tenants(instance.decode()))
    queued = running = buffers = noted = 0
    for packed in registered.values():
        described = await _describe(packed, access)
        if described is not None:
            queued += described.queued
            running += described.running
            noted += described.noted
            buffers += described.buffered_bytes
    async with aiohttp.ClientSession() as http:
        for url in router_urls:
            async with http.get(f"{url}/readyz") as response:
                state = await response.json()
            charges += state["live_charges"]
            running += state["in_flight"] + state["exchanges"] + state["limited_in_flight"]
            buffers += state["held_body_bytes"] + state["recorded_bytes"]
    return Leftovers(
        charges_s=sum(abs(int(value)) for value in booked) / 1e6,
        charges=charges,
        queued=queued,
        sessions=running,
        buffers=buffers,
        noted=noted,
    )


async def describe(address: str, access: AccessSettings = _PLAIN) -> pb.DescribeReply:
    """What a worker says of itself; AioRpcError when it does not answer."""
    async with grpc_access(access).channel(address) as channel:
        reply: pb.DescribeReply = await WorkerControlStub(channel).Describe(pb.DescribeRequest(), timeout=5.0)
        return reply


async def _describe(packed: bytes, access: AccessSettings) -> pb.DescribeReply | None:
    try:
        return await describe(decode_registration(packed).grpc_address, access)
    except (WireError, grpc.aio.AioRpcError):
        return None


async def settle(
    redis_url: str,
    pool: str,
    router_urls: Sequence[str],
    timeout_s: float = 10.0,
    access: AccessSettings = _PLAIN,
) -> Leftovers:
    """The leftovers once they are zero, or what is still there after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        left = await find_leftovers(redis_url, pool, router_urls, access)
        if left.clean or loop.time() > deadline:
            return left
        await asyncio.sleep(0.1)
