"""The charges of this router: which are live, what they hold of each instance, and how Redis is kept to them.

Redis holds the truth for the pool. The copy here serves decisions while Redis is away, and tells after an
outage, a flush or a missed deadline which booked charges nobody waits for any more, and which were lost.
"""

import asyncio
import itertools
import secrets
from dataclasses import dataclass

from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys


@dataclass(slots=True)
class _Charge:
    instance: str = ""
    """Empty until booked."""
    cost_us: int = 0
    feasible: bool = True

    @property
    def kind(self) -> str:
        """The class as Redis writes it."""
        return "f" if self.feasible else "i"

    def is_held_as(self, packed: bytes | None) -> bool:
        """Whether Redis holds exactly this."""
        return packed == f"{self.kind} {self.cost_us} {self.instance}".encode()


class Charges:
    """Charges by id. An id is live from before it is booked until it is released."""

    def __init__(self, store: Store, pool: str, router: str) -> None:
        self._store = store
        self._keys = PoolKeys(pool)
        self._router = router
        # A router that starts again under its name finds its predecessor's charges: it must not take them for its own.
        self._run = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._live: dict[str, _Charge] = {}
        self._feasible_us: dict[str, int] = {}
        self._infeasible_us: dict[str, int] = {}

    def __len__(self) -> int:
        """How many are live."""
        return len(self._live)

    def open(self, tenant: str = "") -> str:
        """A new charge id, not booked yet; by its end Redis counts what a named tenant has booked."""
        charge_id = f"{self._run}-{next(self._ids):x}"
        if tenant:
            charge_id += f"@{tenant}"
        self._live[charge_id] = _Charge()
        return charge_id

    def booked(self, charge_id: str, instance: str, cost_s: float, feasible: bool) -> None:
        """Note what was booked under an id."""
        charge = self._live[charge_id]
        charge.instance, charge.cost_us, charge.feasible = instance, round(cost_s * 1e6), feasible
        totals = self._feasible_us if feasible else self._infeasible_us
        totals[instance] = totals.get(instance, 0) + charge.cost_us

    def book(self, charge_id: str, instance: str, cost_s: float, feasible: bool) -> None:
        """Note what was decided without Redis, and tell it when it can hear: the other routers should see it.

        A late `route` under the same id is replaced; a release goes out behind this on the same connection.
        """
        self.booked(charge_id, instance, cost_s, feasible)
        self._store.post("book", self._keys.prefix, self._router, *self._booking(charge_id))

    def _booking(self, charge_id: str) -> tuple[str, str, int, str]:
        charge = self._live[charge_id]
        return charge_id, charge.kind, charge.cost_us, charge.instance

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
        # At once where nothing else is under way: the client's next request may go to another router, and no call
        # of this one would take it along.
        self._store.post("release", self._keys.prefix, self._router, charge_id, urgent=not self._live)

    def own_us(self, instance: str) -> tuple[int, int]:
        """(feasible, infeasible) microseconds that this router has booked on an instance."""
        return self._feasible_us.get(instance, 0), self._infeasible_us.get(instance, 0)

    async def reconcile(self) -> int:
        """Make what Redis holds for this router what its requests hold; returns how many charges were mended."""
        try:
            reply = await self._store.command("HGETALL", self._keys.router_charges(self._router))
            held = {name.decode(): packed for name, packed in zip(reply[::2], reply[1::2], strict=True)}
            # 1. Held there and live no more: a decision that was given up, or a release that was lost.
            leaked = [charge_id for charge_id in held if charge_id not in self._live]
            # 2. Booked here and not there, or otherwise there: a flush, a failover, a decision made alone.
            lost = [
                charge_id
                for charge_id, charge in self._live.items()
                if charge.instance and not charge.is_held_as(held.get(charge_id))
            ]
            # Sent before anything else can run: a release that comes now goes out behind it.
            calls = []
            if leaked:
                calls.append(self._store.function("release", self._keys.prefix, self._router, *leaked))
            if lost:
                bookings = [arg for charge_id in lost for arg in self._booking(charge_id)]
                calls.append(self._store.function("book", self._keys.prefix, self._router, *bookings))
            return sum(await asyncio.gather(*calls))
        except StoreError:
            return 0
