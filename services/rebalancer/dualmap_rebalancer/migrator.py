"""Calls to the workers: `Migrate`, over one cached channel each."""

import logging
from collections.abc import Sequence

import grpc
import grpc.aio

from dualmap.rebalance import Move
from dualmap_service.grpc_access import GrpcAccess
from dualmap_service.registry import Membership
from dualmap_wire.v1.worker_pb2 import MigrateMove, MigrateReply, MigrateRequest
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

log = logging.getLogger(__name__)

_OPTIONS = (
    # Workers are peers inside the deployment: no proxy, and back soon after a restart.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Migrator:
    """Asks workers to take requests off their queues."""

    def __init__(self, deadline_s: float, access: GrpcAccess) -> None:
        self._deadline_s = deadline_s
        self._access = access
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def migrate(self, address: str, moves: Sequence[Move], fence: int) -> MigrateReply | None:
        """The worker's reply; None when it gave none in time, and then the moves may or may not happen."""
        request = MigrateRequest(
            moves=[MigrateMove(request_id=move.request_id, target=move.target) for move in moves], fence=fence
        )
        stub = WorkerControlStub(self._channel(address))
        try:
            reply: MigrateReply = await stub.Migrate(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as exc:
            facts = {"address": address, "code": exc.code().name, "error": (exc.details() or "")[:200]}
            log.warning("migrate.failed", extra=facts)
            if exc.code() == grpc.StatusCode.UNAVAILABLE:
                # Opened anew, it has the certificates of then: these may have run out.
                await self._forget(address)
            return None
        return reply

    async def follow(self, membership: Membership) -> None:
        """Close the channels of those who left; calls under way still get their answer."""
        wanted = {member.registration.grpc_address for member in membership.members.values()}
        for address in self._channels.keys() - wanted:
            await self._forget(address)

    async def _forget(self, address: str) -> None:
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close(grace=self._deadline_s)

    async def close(self) -> None:
        """Close all channels."""
        while self._channels:
            await self._channels.popitem()[1].close(grace=None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._access.channel(address, _OPTIONS)
        return channel
