"""The rings over the newest membership; those of a large pool are made beside the event loop."""

import asyncio
from collections.abc import Callable, Mapping

from dualmap.hash_ring import RingPair

_INLINE_MEMBERS = 32
"""Up to here a change takes about 3 ms; at 512 members it takes 30 ms, and the first rings a second."""


class RingKeeper:
    """Follows the membership: the latest one wins, whatever was under way for an earlier one."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called after each follow, and again when rings are ready that had to wait."""
        self._changed = changed
        self._wanted: Mapping[str, float] = {}
        self._making: asyncio.Task[None] | None = None
        self.current = RingPair({})

    def follow(self, weights: Mapping[str, float]) -> None:
        """Take instance weights. Until the new rings are ready the old ones stay, so callers skip who has left."""
        self._wanted = weights
        if self._making is None:
            if max(len(weights), len(self.current.members)) <= _INLINE_MEMBERS:
                self.current = self.current.with_members(weights)
            elif weights != self.current.members:
                self._making = asyncio.get_running_loop().create_task(self._make(), name="rings")
        self._changed()

    async def _make(self) -> None:
        try:
            while self._wanted != self.current.members:
                self.current = await asyncio.to_thread(self.current.with_members, self._wanted)
        finally:
            self._making = None
        self._changed()
