"""What others are told of this worker: its registration in the store, and its gRPC health."""

import time
from typing import Any

import msgspec
from grpc_health.v1 import health, health_pb2

from dualmap_service.registry import Lease

SERVICES = ("dualmap_wire.v1.WorkerData", "dualmap_wire.v1.WorkerControl")


class Presence:
    """Registration and health, changed together."""

    def __init__(self) -> None:
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.lease: Lease | None = None

    async def set_serving(self, serving: bool) -> None:
        """Whether health checks find it serving."""
        status = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self.health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def change(self, **fields: Any) -> bool:
        """Change the registration and renew it at once; false if nothing is different."""
        if self.lease is None:
            return False
        known = self.lease.registration
        changed = msgspec.structs.replace(known, **fields)
        if changed == known:
            return False
        self.lease.registration = changed
        await self.lease.renew()
        return True

    async def leave(self, state: str) -> None:
        """Take no new requests."""
        await self.set_serving(False)
        await self.change(state=state)

    def begin_anew(self) -> None:
        """A new generation, with nothing in the cache; it is told with the next renewal."""
        if self.lease is not None:
            known = self.lease.registration
            self.lease.registration = msgspec.structs.replace(
                known, generation=new_generation(known.generation)
            )

    async def come_back(self, **fields: Any) -> None:
        """Take requests again, with nothing in the cache."""
        await self.set_serving(True)
        earlier = self.lease.registration.generation if self.lease is not None else 0
        await self.change(generation=new_generation(earlier), state="active", **fields)


def new_generation(earlier: int = 0) -> int:
    """Larger than this process's `earlier` one, whatever the machine's clock does, and than that of any earlier
    process, as long as it does not run backwards: where it did, the new process waits for the old one's lease to lapse.
    """
    return max(earlier + 1, time.time_ns() // 1_000_000)
