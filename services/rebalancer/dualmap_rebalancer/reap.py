"""Reaping: the leader releases what dead routers booked and forgets dead workers' instances."""

import logging

from dualmap_rebalancer.leadership import Leadership
from dualmap_rebalancer.metrics import Metrics
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

log = logging.getLogger(__name__)

_KINDS = ("routers", "charges", "instances")


class Reap:
    """Looks for lapsed leases."""

    def __init__(
        self, store: Store, pool: str, leadership: Leadership, metrics: Metrics, grace_s: float
    ) -> None:
        self._store = store
        self._prefix = PoolKeys(pool).prefix
        self._leadership = leadership
        self._metrics = metrics
        self._grace_s = grace_s

    async def step(self) -> None:
        """Reap once, unless leases may have lapsed because nobody could renew them."""
        fence = self._leadership.fence
        if fence is None or self._leadership.steady_s < self._grace_s:
            return
        try:
            reaped = await self._store.function("reap", self._prefix, fence)
        except StoreError as exc:
            log.debug("reap.failed", extra={"error": str(exc)})
            return
        if reaped[0] == -1:
            self._leadership.step_down("the store has a newer fence")
            return
        for kind, count in zip(_KINDS, reaped, strict=True):
            self._metrics.reaped.labels(kind).inc(count)
        if any(reaped):
            log.info("reap.done", extra=dict(zip(_KINDS, reaped, strict=True)))
