"""Hot prefixes of the whole pool: read from the counts in Redis in small steps, and only while somebody looks.

The counts are a few thousand: each step reads some hundred, so that neither Redis nor this process's loop is held up.
"""

import asyncio
import heapq
import logging
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass

from dualmap.prefix_key import DECAY
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

log = logging.getLogger(__name__)

NUM_HOT = 12
_EVERY_S = 2.0
_PER_STEP = 256
_MAX_STEPS = 64
_AT_ONCE = 32
"""Instances asked in one go."""


@dataclass(frozen=True, slots=True)
class HotPrefix:
    """A prefix, its share of recent requests, where it is."""

    key: int
    share: float
    outpost: str | None = None
    owners: tuple[str, ...] = ()


class HotPrefixes:
    """The pool's hottest prefixes as they were a moment ago."""

    def __init__(self, store: Store, pool: str) -> None:
        self._store = store
        self._keys = PoolKeys(pool)
        self._read_s = float("-inf")
        self.found: list[HotPrefix] = []

    async def refresh(self, instances: Sequence[str], splits: Set[int]) -> None:
        """Read them again when that was a while ago; an outage leaves what was known."""
        if time.monotonic() - self._read_s < _EVERY_S:
            return
        self._read_s = time.monotonic()
        try:
            hottest = await self._hottest(splits)
            self.found = await self._placed(hottest, instances)
        except StoreError as exc:
            log.debug("ui.hot_failed", extra={"error": str(exc)})

    async def _hottest(self, splits: Set[int]) -> list[tuple[float, bytes]]:
        """(share, prefix) of the hottest that are keys, the hottest first: what is split is no key any more."""
        seen, total = await self._store.command("HMGET", self._keys.key_counts, "seen", "total")
        if not seen or not total:
            return []
        counts: dict[bytes, float] = {}
        for key in self._keys.hot_keys:
            await self._scan(key, int(seen), counts)
        for split in splits:
            counts.pop(split.to_bytes(8, "big"), None)
        best = heapq.nlargest(NUM_HOT, ((count, prefix) for prefix, count in counts.items()))
        whole = max(float(total), 1.0)
        return [(min(count / whole, 1.0), prefix) for count, prefix in best]

    async def _scan(self, key: str, seen: int, counts: dict[bytes, float]) -> None:
        """Read one generation; what the newer one says stands."""
        cursor = b"0"
        for _ in range(_MAX_STEPS):
            cursor, flat = await self._store.command("HSCAN", key, cursor, "COUNT", _PER_STEP)
            for prefix, packed in zip(flat[::2], flat[1::2], strict=True):
                count, _, at = packed.partition(b" ")
                counts.setdefault(prefix, float(count) * DECAY ** (seen - int(at)))
            if cursor == b"0":
                return

    async def _placed(
        self, hottest: Sequence[tuple[float, bytes]], instances: Sequence[str]
    ) -> list[HotPrefix]:
        """With who holds each and its outpost."""
        prefixes = [prefix for _, prefix in hottest]
        if not prefixes:
            return []
        current, older = self._keys.outposts
        outposts = await self._store.command("HMGET", current, *prefixes)
        before = await self._store.command("HMGET", older, *prefixes)
        owners: list[list[str]] = [[] for _ in prefixes]
        for first in range(0, len(instances), _AT_ONCE):
            names = instances[first : first + _AT_ONCE]
            asked = [self._store.command("ZMSCORE", self._keys.own(name), *prefixes) for name in names]
            for name, scores in zip(names, await asyncio.gather(*asked), strict=True):
                for holders, score in zip(owners, scores, strict=True):
                    if score is not None:
                        holders.append(name)
        return [
            HotPrefix(
                key=int.from_bytes(prefix, "big"),
                share=share,
                outpost=(outpost or was).decode() if outpost or was else None,
                owners=tuple(holders),
            )
            for (share, prefix), outpost, was, holders in zip(hottest, outposts, before, owners, strict=True)
        ]
