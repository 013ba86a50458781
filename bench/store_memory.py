"""What a pool takes of the store's memory: `python -m bench.store_memory`.

An embedded Valkey gets what routers write, through the services' own functions; its `used_memory` is read before and
after.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import redis

from dualmap.types import ChoiceRequest, ChoiceRule, PrefillSpeed
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import RouteCall, function_name, library, pack_hashes
from dualmap_wire.redis_keys import LEASE_MS, PoolKeys

_INSTANCES = tuple(f"instance-{number}" for number in range(8))
_CHUNKS = 100_000
"""Owned chunks of one instance: what a router writes at most."""
_CHARGES = 10_000
_DISTINCT = 20_000
"""Requests of distinct prompts: their counts have gone round several times by then."""
_DEPTH = 4


class _Pool:
    """A pool with eight instances, and how much memory it takes."""

    def __init__(self, client: "redis.Redis") -> None:
        # Typed for every way it may decode; here replies are bytes.
        self._client: Any = client
        self._prefix = PoolKeys("memory").prefix
        self._chance = random.Random(1)
        client.function_load(library()[1])
        for instance in _INSTANCES:
            self.call("register", instance, "{}", 1, LEASE_MS * 1000)
        self._used = 0
        self.grown()

    def call(self, name: str, *args: Any) -> Any:
        """A function of the library."""
        return self._client.fcall(function_name(name), 1, self._prefix, *args)

    def hashes(self, count: int) -> list[int]:
        """Of chunks that nothing else has."""
        return [self._chance.getrandbits(64) for _ in range(count)]

    def own(self, instance: str, count: int) -> None:
        """What routers write of one instance, a prompt of 100 chunks at a time."""
        for _ in range(count // 100):
            self.call("own_add", instance, 1, count, pack_hashes(self.hashes(100)))

    def route(self, charge: str, hashes: Sequence[int], book: bool) -> None:
        """A decision."""
        call = RouteCall(
            router="router-1",
            charge_id=charge,
            request=ChoiceRequest(1000, 512.0, 5.0),
            rule=ChoiceRule(),
            hashes=pack_hashes(hashes),
            key_depth=len(hashes),
            split_version=0,
            pair=_INSTANCES[:2],
            pool="\n".join(_INSTANCES).encode(),
            start=0,
            default_speed=PrefillSpeed(0.01, 1e-4, 2e-9),
            count=not book,
            book=book,
        )
        self.call("route", *call.args())

    def grown(self) -> int:
        """Bytes since the last call."""
        used = int(self._client.info("memory")["used_memory"])
        grown, self._used = used - self._used, used
        return grown


async def _measure() -> None:
    async with EmbeddedStore() as store:
        with redis.Redis.from_url(store.url) as client:
            pool = _Pool(client)
            pool.own(_INSTANCES[0], _CHUNKS)
            chunk = pool.grown() / _CHUNKS
            for number in range(_CHARGES):
                pool.route(f"charge-{number:032}", (), book=True)
            charge = pool.grown() / _CHARGES
            for number in range(_DISTINCT):
                pool.route(f"dry-{number}", pool.hashes(_DEPTH), book=False)
            counts = pool.grown()
    print("| what | memory |\n|---|---:|")
    print(f"| an owned chunk, of {_CHUNKS:,} | {chunk:.0f} bytes |")
    print(f"| a request between its decision and its first token, of {_CHARGES:,} | {charge:.0f} bytes |")
    print(
        f"| counts of prefixes, after {_DISTINCT:,} prompts with keys of {_DEPTH} chunks | {counts / 2**20:.1f} MiB |"
    )


if __name__ == "__main__":
    asyncio.run(_measure())
