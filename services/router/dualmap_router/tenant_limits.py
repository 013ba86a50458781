"""What tenants may ask for, kept to by all routers of a pool together.

One call of a Redis function counts a request. While Redis is away or late each router lets in its share: the limit over
the number of routers that there were when it was last heard of. That is too little or too much by what the others do
not use; a request is never failed for it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dualmap.limits import Limits, take
from dualmap_router.caller import Caller
from dualmap_router.errors import ApiError
from dualmap_router.http_message import Pairs
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import Entered, parse_enter
from dualmap_wire.redis_keys import PoolKeys

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tenant:
    inside: int = 0
    """Its requests in this router."""
    asked: int = 0
    """Those that Redis has not answered for yet."""
    counted: bool = False
    """Whether Redis counts them."""
    full_at_s: float = 0.0
    """When its bucket here is full: for the times without Redis."""


class TenantLimits:
    """The requests of tenants that have limits."""

    def __init__(
        self,
        store: Store,
        pool: str,
        router: str,
        deadline_s: float,
        refused: Callable[[str], None],
        alone: Callable[[], None],
    ) -> None:
        """`refused` is told why, each time; `alone` that this router went by its share."""
        self._store = store
        self._keys = PoolKeys(pool)
        self._router = router
        self._deadline_s = deadline_s
        self._refused = refused
        self._alone = alone
        self._tenants: dict[str, _Tenant] = {}
        self._routers = 1

    @property
    def inside(self) -> int:
        """Requests of such tenants in this router."""
        return sum(tenant.inside for tenant in self._tenants.values())

    async def enter(self, caller: Caller, limits: Limits) -> Pairs:
        """Count a request in, for `leave` to count out; returns what to tell its client. ApiError 429 if it may not."""
        tenant = self._tenants.setdefault(caller.tenant, _Tenant())
        tenant.counted = limits.concurrency > 0
        tenant.asked += 1
        try:
            entered = await self._ask(caller.tenant, limits) or self._decide(tenant, limits)
        finally:
            tenant.asked -= 1
        if entered.refused:
            raise self._refusal(caller, entered, limits)
        tenant.inside += 1
        return _standing(entered, limits)

    def leave(self, caller: Caller, limits: Limits) -> None:
        """A request that was counted in is over."""
        tenant = self._tenants[caller.tenant]
        tenant.inside -= 1
        if limits.concurrency:
            self._store.post("leave", self._keys.prefix, self._router, caller.tenant)

    async def sync(self) -> None:
        """Say how many there are: calls may be lost or come late, and what nobody says again is forgotten."""
        now_s = time.monotonic()
        counts: list[str | int] = []
        for name, tenant in list(self._tenants.items()):
            # What is on its way there counts itself: then only Redis knows the sum.
            if tenant.asked:
                continue
            if tenant.counted:
                counts += (name, tenant.inside)
            if not tenant.inside and tenant.full_at_s <= now_s:
                del self._tenants[name]
        if counts:
            self._store.post("inside", self._keys.prefix, self._router, *counts)

    async def _ask(self, name: str, limits: Limits) -> Entered | None:
        """What all routers together say; None if Redis does not in time."""
        asked = (limits.requests_per_s, limits.burst, limits.concurrency)
        try:
            reply = await self._store.function(
                "enter", self._keys.prefix, self._router, name, *asked, deadline_s=self._deadline_s
            )
            entered = parse_enter(reply)
        except (StoreError, WireError):
            return None
        self._routers = max(entered.routers, 1)
        return entered

    def _decide(self, tenant: _Tenant, limits: Limits) -> Entered:
        """What this router says by itself."""
        self._alone()
        share = limits.share(self._routers)
        now_s = time.monotonic()
        if share.concurrency and tenant.inside >= share.concurrency:
            return Entered("concurrency", 0.0, 0, 0.0, self._routers)
        if not share.requests_per_s:
            return Entered("", 0.0, 0, 0.0, self._routers)
        taken = take(tenant.full_at_s, now_s, share)
        tenant.full_at_s = taken.full_at_s
        full_s = max(taken.full_at_s - now_s, 0.0)
        return Entered("rate" if taken.wait_s else "", taken.wait_s, taken.remaining, full_s, self._routers)

    def _refusal(self, caller: Caller, entered: Entered, limits: Limits) -> ApiError:
        self._refused(entered.refused)
        log.debug(
            "limit.refused", extra={"tenant": caller.tenant, "key": caller.name, "why": entered.refused}
        )
        if entered.refused == "concurrency":
            wait_s, said = 1.0, f"{limits.concurrency} requests at once"
        else:
            wait_s, said = (
                entered.wait_s,
                f"{limits.requests_per_s:g} requests/s after {limits.burst} at a time",
            )
        return ApiError(
            429,
            f"tenant {caller.tenant!r} is at its limit of {said}; try again later",
            "rate_limit_error",
            "rate_limit_exceeded",
            retry_after_s=wait_s,
            headers=[("retry-after-ms", str(max(1, round(wait_s * 1e3)))), *_standing(entered, limits)],
        )


def _standing(entered: Entered, limits: Limits) -> Pairs:
    """The tenant's bucket, in OpenAI's headers."""
    if not limits.requests_per_s:
        return ()
    return (
        ("x-ratelimit-limit-requests", str(limits.burst)),
        ("x-ratelimit-remaining-requests", str(entered.remaining)),
        ("x-ratelimit-reset-requests", f"{round(entered.full_s * 1e3)}ms"),
    )
