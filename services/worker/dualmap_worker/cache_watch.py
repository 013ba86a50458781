"""Follows what the engine has cached: its KV events, the chunks that they stand for, and ownership by them."""

import asyncio

from dualmap_service.lifecycle import Background, every
from dualmap_service.registry import Lease
from dualmap_service.store import Store
from dualmap_worker.engine_launch import EngineLaunch
from dualmap_worker.holdings import Holdings
from dualmap_worker.kv_feed import KvFeed
from dualmap_worker.ownership import KvState, Ownership
from dualmap_worker.presence import Presence

_PERIOD_S = 0.1
_UNTOLD = 10
"""Requests without a KV event, one after the other, until the feed is taken to be silent."""


class CacheWatch:
    """The parts that follow an engine's cache; without KV events there are none, and ownership is expectation."""

    def __init__(self, launch: EngineLaunch, presence: Presence) -> None:
        self._launch = launch
        self._presence = presence
        # Ranks have caches of their own, and who gets which request is not known here.
        self.holdings = Holdings() if len(launch.kv.events) == 1 else None
        self._feed: KvFeed | None = None
        self._ownership: Ownership | None = None

    @property
    def state(self) -> KvState:
        """For telemetry."""
        return self._ownership.state if self._ownership is not None else KvState()

    @property
    def num_open(self) -> int:
        """Requests whose blocks are being noted; zero at rest."""
        return self.holdings.num_open if self.holdings is not None else 0

    @property
    def silent(self) -> bool:
        """Whether events are to be followed, and none come of what requests compute."""
        return self.holdings is not None and self.holdings.num_untold >= _UNTOLD

    def start(self, background: Background, lease: Lease, store: Store) -> None:
        """Begin to follow."""
        if self.holdings is None:
            return
        self.resized(lease.registration.kv_tokens)
        kv = self._launch.kv
        self._feed = KvFeed(
            kv.events[0],
            kv.replay[0] if kv.replay else "",
            self.holdings.apply,
            self.holdings.blocks.miss,
            self._restarted,
        )
        self._ownership = Ownership(self.holdings, lease, store, self._feed)
        background.start(self._feed.run(), "kv-events")
        background.start(every(_PERIOD_S, self._keep), "ownership")

    def resized(self, kv_tokens: int) -> None:
        """The cache holds so many tokens."""
        if self.holdings is not None and kv_tokens:
            self.holdings.blocks.capacity_tokens = kv_tokens

    def engine_back(self) -> None:
        """The engine was away: it may have begun anew."""
        if self._feed is not None:
            self._feed.check_soon()

    def close(self) -> None:
        """Close the sockets."""
        if self._feed is not None:
            self._feed.close()

    async def _keep(self) -> None:
        assert self._ownership is not None
        await self._ownership.step(asyncio.get_running_loop().time())

    def _restarted(self) -> None:
        """The engine began anew: it holds nothing, and what is registered is of another."""
        assert self.holdings is not None
        self.holdings.restarted()
        self._presence.begin_anew()
