"""Ownership: keeps what Redis says this instance holds true to what its engine's KV events tell.

Routers write a prompt's chunks down when they send it; from then on this worker, the only one that sees the engine's
events, corrects them: in small steps as the cache changes, and all at once whenever the two may differ (a first
event, a restart, a flushed or returned Redis, a count that does not agree). An engine without events, or whose
events do not name the request that stored a block, leaves ownership to the routers' expectation.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from dualmap_service.errors import StoreError
from dualmap_service.registry import Lease
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys
from dualmap_worker.holdings import Chunk, Holdings
from dualmap_worker.kv_feed import KvFeed

log = logging.getLogger(__name__)

_GRACE_US = 1_000_000
"""A chunk that a router wrote down this lately belongs to a request that may not have arrived yet."""
_COMPARE_S = 10.0
_COUNT_S = 1.0


@dataclass(frozen=True, slots=True)
class KvState:
    """What a worker tells of its engine's events."""

    followed: bool = False
    num_lost: int = 0
    num_chunks: int = 0


class Ownership:
    """One instance's `own` key, as its worker keeps it by the events of its engine."""

    def __init__(self, holdings: Holdings, lease: Lease, store: Store, feed: KvFeed) -> None:
        self._holdings = holdings
        self._feed = feed
        self._lease = lease
        self._store = store
        self._keys = PoolKeys(lease.registration.pool)
        self._generation = 0
        self._all = True
        self._compare_at_s = 0.0
        self._num_chunks = 0
        self._count_at_s = 0.0
        store.on_connect.append(self._write_all_next)

    @property
    def kept(self) -> bool:
        """Whether events say who stored what, so that ownership follows the cache."""
        return self._holdings.blocks.names_requests

    @property
    def state(self) -> KvState:
        """For telemetry."""
        return KvState(self.kept, self._feed.num_lost, self._num_chunks)

    async def step(self, now_s: float) -> None:
        """Write down what has changed."""
        self._holdings.settle(now_s)
        registration = self._lease.registration
        if registration.kv_events != self.kept:
            # Before the first correction: routers may trim no longer what this worker knows to be there.
            self._lease.registration = msgspec.structs.replace(registration, kv_events=self.kept)
            await self._lease.renew()
        if registration.generation != self._generation:
            await self._lease.renew()
            self._generation, self._all = registration.generation, True
        if not self.kept:
            self._holdings.take_changes()
            return
        if now_s >= self._count_at_s:
            # Not at every report: a large cache takes a while to count.
            self._count_at_s, self._num_chunks = now_s + _COUNT_S, len(self._holdings)
        try:
            if self._all:
                self._all = False
                await self._write("all", self._holdings.everything(), [])
            else:
                held, gone = self._holdings.take_changes()
                if held or gone or now_s >= self._compare_at_s:
                    await self._write_some(held, gone, now_s)
        except StoreError as exc:
            log.debug("ownership.not_written", extra={"error": str(exc)})
            self._all = True

    async def _write_some(self, held: list[Chunk], gone: list[Chunk], now_s: float) -> None:
        count, spared = await self._write("some", held, gone)
        self._holdings.again(spared)
        if now_s >= self._compare_at_s:
            self._compare_at_s = now_s + _COMPARE_S
            # Requests on their way make them differ for a moment; so does what nobody will ever correct.
            self._all = count != len(self._holdings)

    async def _write(
        self, which: str, held: Sequence[Chunk], gone: Sequence[Chunk]
    ) -> tuple[int, list[Chunk]]:
        reply = await self._store.function(
            "own_sync",
            self._keys.prefix,
            self._lease.registration.instance,
            str(self._generation),
            which,
            _GRACE_US,
            b"".join(held),
            b"".join(gone),
        )
        if reply[0] < 0:
            raise StoreError("another generation is registered")
        return reply[0], reply[1:]

    def _write_all_next(self) -> None:
        self._all = True
