"""The charges of this router: which are live, what they hold of each instance, and how leaks are mended.

Redis holds the truth for the pool. The copy here serves decisions while Redis is away, and tells after an
outage or a missed deadline which of the booked charges nobody waits for any more.
"""

import itertools
from dataclasses import dataclass

from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys


@dataclass(slots=True)
class _Charge:
    instance: str = ""
    cost_us: int = 0
    feasible: bool = True


class Charges:
    """Charges by id. An id is live from before it is booked until it is released."""

    def __init__(self, store: Store, pool: str, router: str) -> None:
        self._store = store
        self._keys = PoolKeys(pool)
        self._router = router
        self._ids = itertools.count(1)
        self._live: dict[str, _Charge] = {}
        self._feasible_us: dict[str, int] = {}
        self._infeasible_us: dict[str, int] = {}

    def __len__(self) -> int:
        """How many are live."""
        return len(self._live)

    def open(self) -> str:
        """A new charge id, not booked yet."""
        charge_id = f"{next(self._ids):x}"
        self._live[charge_id] = _Charge()
        return charge_id

    def booked(self, charge_id: str, instance: str, cost_s: float, feasible: bool) -> None:
        """Note what was booked under an id."""
        charge = self._live[charge_id]
        charge.instance, charge.cost_us, charge.feasible = instance, int(cost_s * 1e6), feasible
        totals = self._feasible_us if feasible else self._infeasible_us
        totals[instance] = totals.get(instance, 0) + charge.cost_us

    def release(self, charge_id: str) -> None:
        """Give a charge back, here and in Redis; a second time does nothing."""
        charge = self._live.pop(charge_id, None)
        if charge is None:
            return
        if charge.instance:
            totals = self._feasible_us if charge.feasible else self._infeasible_us
            left = totals[charge.instance] - charge.cost_us
            if left:
                totals[charge.instance] = left
            else:
                del totals[charge.instance]
        # Sent even if never seen booked: a decision that missed its deadline may have booked it after all.
        self._store.post("release", self._keys.prefix, self._router, charge_id)

    def own_us(self, instance: str) -> tuple[int, int]:
        """(feasible, infeasible) microseconds that this router has booked on an instance."""
        return self._feasible_us.get(instance, 0), self._infeasible_us.get(instance, 0)

    async def reconcile(self) -> int:
        """Release what Redis holds for this router and no request waits for; returns how many."""
        try:
            held = await self._store.command("HKEYS", self._keys.router_charges(self._router))
            leaked = [charge_id for charge_id in held if charge_id.decode() not in self._live]
            if not leaked:
                return 0
            released: int = await self._store.function("release", self._keys.prefix, self._router, *leaked)
        except StoreError:
            return 0
        return released
