"""Who leads: a lease in Redis, renewed each second, and a fencing token that grows with every change of hands.

The leader counts its lease from before it asked, by its own monotonic clock, and stops acting some time
before the lease could end. What it sent just before that is refused by its receivers: the functions and
the workers ignore an old token.
"""

import asyncio
import logging
import time

from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

log = logging.getLogger(__name__)

_GUARD_SHARE = 1 / 6
"""The last part of the lease, in which nothing is begun any more."""
_RETRY_S = 0.1


class Leadership:
    """This process's part in the election: leading, standing by, or without an answer from the store."""

    def __init__(
        self, store: Store, pool: str, who: str, *, lease_s: float, renew_s: float, standby_poll_s: float
    ) -> None:
        self._store = store
        self._prefix = PoolKeys(pool).prefix
        self._who = who
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._standby_poll_s = standby_poll_s
        self._fence: int | None = None
        self._act_until_s = 0.0
        self._answered = False
        self._disturbed_s = time.monotonic()
        self._hurry = asyncio.Event()
        store.on_connect.append(self._connected)

    @property
    def fence(self) -> int | None:
        """The fencing token while this process may act as the leader, else None; ask right before acting."""
        return self._fence if time.monotonic() < self._act_until_s else None

    @property
    def settled(self) -> bool:
        """Whether the store's last answer said who leads: this process or another."""
        return self._answered

    @property
    def steady_s(self) -> float:
        """For how long the store has answered every time, on one connection."""
        return time.monotonic() - self._disturbed_s

    async def run(self) -> None:
        """Take the lead or renew it, for ever."""
        while True:
            await self.renew()
            pause_s = _RETRY_S
            if self._answered:
                pause_s = self._standby_poll_s if self._fence is None else self._renew_s
            self._hurry.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    async def renew(self) -> None:
        """Ask once for the lead; without a yes this process stops acting."""
        asked_s = time.monotonic()
        try:
            fence = await self._store.function("lead", self._prefix, self._who, round(self._lease_s * 1000))
        except StoreError as exc:
            self._answered = False
            self._disturbed_s = time.monotonic()
            self.step_down(str(exc))
            return
        self._answered = True
        if fence == 0:
            self.step_down("another leads")
            return
        if fence != self._fence:
            log.info("lead.taken", extra={"fence": fence})
        self._fence = fence
        self._act_until_s = asked_s + self._lease_s * (1 - _GUARD_SHARE)

    def step_down(self, why: str) -> None:
        """Stop acting now; the next renewal tells who leads."""
        if self._fence is not None:
            log.warning("lead.lost", extra={"fence": self._fence, "why": why})
        self._fence, self._act_until_s = None, 0.0

    def check_soon(self) -> None:
        """Somebody says that there is a newer leader: ask the store at once."""
        self._hurry.set()

    async def resign(self) -> None:
        """Give the lead up, so that a standby need not wait for the lease to end."""
        self._fence, self._act_until_s = None, 0.0
        try:
            # Also when this process does not think that it leads: the store may know better.
            resigned = await self._store.function("resign", self._prefix, self._who)
        except StoreError as exc:
            log.warning("lead.not_resigned", extra={"error": str(exc)})
            return
        if resigned:
            log.info("lead.resigned")

    def _connected(self) -> None:
        self._disturbed_s = time.monotonic()
        self._hurry.set()
