"""A pool in a real store, through the same functions as the services, one synchronous call at a time."""

from collections.abc import Sequence
from typing import Any

import redis

from dualmap.limits import Limits
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed
from dualmap_wire.redis_functions import (
    Entered,
    Overload,
    Perf,
    RouteCall,
    Routed,
    StaleSplits,
    function_name,
    library,
    pack_hashes,
    parse_enter,
    parse_route,
    parse_views,
)
from dualmap_wire.redis_keys import PoolKeys

SPEED = PrefillSpeed(0.01, 1e-4, 2e-9)
LEASE_MS = 60_000


class WirePool:
    """The functions of one pool as methods; arguments are those of the functions."""

    def __init__(self, client: "redis.Redis", name: str = "p") -> None:
        # The client's replies are typed for every way it may decode; here they are bytes.
        self.client: Any = client
        self.keys = PoolKeys(name)
        client.function_load(library()[1], replace=True)

    def call(self, function: str, *args: Any) -> Any:
        """Call a function of the library."""
        return self.client.fcall(function_name(function), 1, self.keys.prefix, *args)

    def views(
        self, names: Sequence[str], hashes: Sequence[int] = (), now_us: int | None = None
    ) -> list[InstanceView]:
        """What a decision sees, as of `now_us` on the server's clock if given."""
        reply = self.call("views", pack_hashes(hashes), "\n".join(names))
        if now_us is not None:
            reply[0] = now_us
        return parse_views(reply, SPEED)

    def route_raw(self, call: RouteCall) -> list[Any]:
        """The reply of `route`; its last item is the server's clock when it decided."""
        reply: list[Any] = self.call("route", *call.args())
        return reply

    def route(self, call: RouteCall) -> Routed | StaleSplits | Overload:
        """The parsed reply of `route`."""
        return parse_route(self.route_raw(call))

    def register(
        self, instance: str, generation: int = 1, registration: bytes = b"{}", lease_ms: int = LEASE_MS
    ) -> int:
        """A worker's heartbeat; returns the version of the membership."""
        return int(self.call("register", instance, registration, generation, lease_ms))

    def members(self, router: str = "", lease_ms: int = LEASE_MS) -> list[Any]:
        """A router's poll."""
        reply: list[Any] = self.call("members", router, lease_ms)
        return reply

    def enter(self, limits: Limits, router: str = "r1", tenant: str = "acme") -> tuple[Entered, int]:
        """One more request of a tenant, and the server's clock when it was decided on."""
        asked = (limits.requests_per_s, limits.burst, limits.concurrency)
        reply = self.call("enter", router, tenant, *asked)
        return parse_enter(reply), reply[-1]

    def inside(self, tenant: str = "acme") -> dict[str, int]:
        """How many requests of a tenant each router has."""
        found = self.client.hgetall(self.keys.inside(tenant))
        return {router.decode(): int(count) for router, count in found.items()}

    def own_add(self, instance: str, hashes: Sequence[int], generation: int = 1, most: int = 10_000) -> int:
        """A router marks what a dispatch makes an instance hold."""
        return int(self.call("own_add", instance, generation, most, pack_hashes(hashes)))

    def owned(self, instance: str) -> list[int]:
        """What an instance is taken to hold, oldest use first."""
        return [
            int.from_bytes(member, "big") for member in self.client.zrange(self.keys.own(instance), 0, -1)
        ]

    def lead(self, who: str, lease_ms: int = LEASE_MS) -> int:
        """A rebalancer takes or renews the lead."""
        return int(self.call("lead", who, lease_ms))

    def fold(self, fence: int, *reports: tuple[str, int, Perf]) -> int:
        """A rebalancer folds telemetry; `started_us` of each is the microseconds since."""
        flat: list[Any] = []
        for instance, generation, perf in reports:
            flat += [instance, generation, perf.pack()]
        return int(self.call("fold", fence, *flat))

    def charges(self) -> dict[str, int]:
        """Booked microseconds per class and instance."""
        return {field.decode(): int(us) for field, us in self.client.hgetall(self.keys.charges).items()}

    def router_charges(self, router: str) -> dict[str, tuple[str, int, str]]:
        """A router's charges: class, microseconds, instance."""
        found = {}
        for charge, packed in self.client.hgetall(self.keys.router_charges(router)).items():
            kind, us, instance = packed.decode().split(" ", 2)
            found[charge.decode()] = (kind, int(us), instance)
        return found


def perf(
    speed: PrefillSpeed = SPEED,
    router: str = "",
    charge: str = "",
    elapsed_us: int = 0,
    cost_us: int = 0,
    feasible: bool = True,
    held: bool = False,
    gives_way_us: int = 0,
) -> Perf:
    """An instance's telemetry as `fold` takes it."""
    return Perf(speed, router, charge, elapsed_us, cost_us, feasible, held, gives_way_us=gives_way_us)


def route_call(
    names: Sequence[str],
    charge: str = "c1",
    router: str = "r1",
    request: ChoiceRequest = ChoiceRequest(1000, 512.0, 5.0),  # noqa: B008 - a value
    rule: ChoiceRule = ChoiceRule(),
    hashes: Sequence[int] = (),
    key_depth: int = 0,
    split_version: int = 0,
    pair: Sequence[str] | None = None,
    start: int = 0,
    max_wait_s: float = 0.0,
    count: bool = False,
    book: bool = True,
    at_home: bool = True,
) -> RouteCall:
    """The arguments of a decision over `names`, the first two being the pair unless told."""
    return RouteCall(
        router=router,
        charge_id=charge,
        request=request,
        rule=rule,
        hashes=pack_hashes(hashes),
        key_depth=key_depth,
        split_version=split_version,
        pair=tuple(names[:2]) if pair is None else tuple(pair),
        pool="\n".join(sorted(names)).encode(),
        start=start,
        default_speed=SPEED,
        max_wait_s=max_wait_s,
        count=count,
        book=book,
        at_home=at_home,
    )
