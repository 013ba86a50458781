"""The registry: workers hold a lease per instance; routers and the rebalancer watch the membership."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import Perf, parse_perf
from dualmap_wire.redis_keys import LEASE_MS, PoolKeys
from dualmap_wire.telemetry import Registration, decode_registration, encode_registration

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """An instance as the registry knows it."""

    registration: Registration
    alive: bool
    perf: Perf | None

    @property
    def takes_new_keys(self) -> bool:
        """Whether the rings may offer it."""
        return self.alive and self.registration.state == "active"


@dataclass(frozen=True, slots=True)
class Membership:
    """The pool at one moment."""

    version: int = -1
    members: Mapping[str, Member] = field(default_factory=dict)
    now_us: int = 0
    """The Redis server's clock when this was read."""


def parse_members(reply: object) -> Membership:
    """The reply of `members`; an entry that is none is left out, WireError when it is no such reply."""
    match reply:
        case [int(version), int(now_us), *entries]:
            return Membership(version, dict(_members(entries)), now_us)
    raise WireError(f"members answered {reply!r:.200}")


def _members(entries: Sequence[Any]) -> Iterator[tuple[str, Member]]:
    for entry in entries:
        try:
            name, packed, _generation, alive, perf = entry
            yield name.decode(), Member(decode_registration(packed), alive == 1, parse_perf(perf))
        except (TypeError, ValueError, AttributeError) as exc:
            # One poisoned entry must not take the others, and with them every router, away.
            log.warning("registry.bad_entry", extra={"entry": f"{entry!r:.80}", "error": str(exc)})


class Lease:
    """A worker's registration, renewed until it is given up."""

    def __init__(self, store: Store, registration: Registration) -> None:
        self._store = store
        self._keys = PoolKeys(registration.pool)
        self._dropped = False
        self._refused_since_s: float | None = None
        """Since when every answer of the store was a refusal; None where the last was none, or did not come."""
        self.registration = registration

    @property
    def taken(self) -> bool:
        """Whether another process keeps the name: refused for longer than one that died could hold it."""
        since_s = self._refused_since_s
        return since_s is not None and time.monotonic() - since_s > 2 * LEASE_MS / 1000

    async def renew(self) -> bool:
        """Register or renew; false while the store is away or a later start holds the name."""
        if self._dropped:
            # A heartbeat right behind the farewell would bring a dead instance back for a lease's time.
            return False
        registration = self.registration
        try:
            version = await self._store.function(
                "register",
                self._keys.prefix,
                registration.instance,
                encode_registration(registration),
                str(registration.generation),
                LEASE_MS,
            )
        except StoreError as exc:
            # Nobody says who has the name: what was refused before an outage says nothing of after it.
            self._refused_since_s = None
            log.warning("registry.lease_not_renewed", extra={"error": str(exc)})
            return False
        if version < 0:
            self._refused_since_s = self._refused_since_s or time.monotonic()
            log.error(
                "registry.name_taken",
                extra={"instance": registration.instance, "generation": registration.generation},
            )
            return False
        self._refused_since_s = None
        return True

    async def drop(self) -> None:
        """Leave the pool, for good."""
        self._dropped = True
        registration = self.registration
        try:
            await self._store.function(
                "deregister", self._keys.prefix, registration.instance, str(registration.generation)
            )
        except StoreError as exc:
            log.warning("registry.lease_not_dropped", extra={"error": str(exc)})


class MembershipWatch:
    """The last known membership, read again and again; an outage leaves it as it was.

    A store that was away, or that lost its data, knows of nobody until the workers have renewed their leases.
    So for a lease's time after an outage or a flush, who is missing or lapsed is still taken for alive.
    """

    def __init__(self, store: Store, pool: str, router: str = "") -> None:
        """`router` names the router whose own lease each poll renews; empty for other services."""
        self._store = store
        self._keys = PoolKeys(pool)
        self._router = router
        self._trusted_from_s = 0.0
        """When every worker that lives has had the time to say so."""
        self.current = Membership()
        self.read_s = time.monotonic()
        """When it was read last."""
        self.on_change: list[Callable[[Membership], None]] = []
        """Called when an instance came, left, changed state or changed generation."""

    async def poll(self) -> bool:
        """Read the membership once; false while the store is away."""
        try:
            reply = await self._store.function("members", self._keys.prefix, self._router, LEASE_MS)
            read = parse_members(reply)
        except (StoreError, WireError):
            self._distrust()
            return False
        if read.version < self.current.version:
            log.warning("registry.lost", extra={"version": read.version, "was": self.current.version})
            self._distrust()
        if time.monotonic() < self._trusted_from_s:
            read = Membership(read.version, self._with_known(read.members), read.now_us)
        before, self.current = self.current, read
        self.read_s = time.monotonic()
        if _shape(before) != _shape(self.current):
            for callback in self.on_change:
                callback(self.current)
        return True

    def _distrust(self) -> None:
        self._trusted_from_s = time.monotonic() + LEASE_MS / 1000

    def _with_known(self, members: Mapping[str, Member]) -> dict[str, Member]:
        """The members, and those that were alive before as they were."""
        known = {name: member for name, member in self.current.members.items() if member.alive}
        return {**known, **{name: m for name, m in members.items() if m.alive or name not in known}}

    async def run(self, period_s: float) -> None:
        """Poll for ever."""
        while True:
            await self.poll()
            await asyncio.sleep(period_s)


def _shape(membership: Membership) -> dict[str, tuple[object, ...]]:
    """What a change of is worth telling."""
    return {name: (member.registration, member.alive) for name, member in membership.members.items()}
