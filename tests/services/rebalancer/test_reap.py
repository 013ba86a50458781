"""What the dead leave behind is cleared; an outage of the store makes nobody dead."""

from dualmap_service.errors import StoreError
from dualmap_service.registry import MembershipWatch
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.telemetry import Registration, encode_registration

from ...waiting import eventually
from .conftest import KEYS, Start
from .recording_worker import POOL, RecordingWorker


async def register(shared: Store, instance: str, lease_ms: int) -> None:
    registration = Registration(
        instance=instance,
        pool=POOL,
        model="m",
        grpc_address="127.0.0.1:9",
        telemetry_address="tcp://127.0.0.1:9",
        generation=1,
    )
    await shared.function("register", KEYS.prefix, instance, encode_registration(registration), "1", lease_ms)


async def test_a_dead_worker_is_forgotten(start: Start, shared: Store) -> None:
    await register(shared, "dead", 300)
    await register(shared, "alive", 60_000)
    async with start() as running:

        async def forgotten() -> bool:
            return await shared.command("HKEYS", KEYS.instances) == [b"alive"]

        await eventually(forgotten)
        await running.above("reaped_total", 0, kind="instances")


async def test_a_dead_routers_charges_are_released(start: Start, shared: Store) -> None:
    for router, charges in (("dead", ("c1", "c2")), ("alive", ("c3",))):
        await MembershipWatch(shared, POOL, router).poll()
        for charge in charges:
            await shared.command("HSET", KEYS.router_charges(router), charge, "f 250000 w1")
            await shared.command("HINCRBY", KEYS.charges, "f:w1", 250_000)
    await shared.command("PEXPIRE", KEYS.router_lease("dead"), 300)
    await shared.command("PERSIST", KEYS.router_lease("alive"))
    async with start() as running:

        async def released() -> bool:
            return await shared.command("HGET", KEYS.charges, "f:w1") == b"250000"

        await eventually(released)
        assert await shared.command("EXISTS", KEYS.router_charges("dead")) == 0
        assert await shared.command("SMEMBERS", KEYS.routers) == [b"alive"]
        await running.above("reaped_total", 1, kind="charges")
        assert await running.metric("reaped_total", kind="routers") == 1


async def test_a_frozen_store_lets_the_living_renew(
    start: Start, shared: Store, store: EmbeddedStore
) -> None:
    """Leases lapse while the store stands still; nobody is reaped for that."""
    async with RecordingWorker(shared, "w1"), start(reap_grace_s=3.0) as running:

        async def noticed() -> bool:
            return await running.metric("leader") == 0

        store.pause()
        await eventually(noticed)
        store.resume()

        async def lapse() -> bool:
            try:
                return bool(await shared.command("DEL", KEYS.instance_lease("w1")))
            except StoreError:
                return False

        await eventually(lapse)
        await running.above("leader", 0)
        await running.passes(12)
        assert await shared.command("HKEYS", KEYS.instances) == [b"w1"]
        assert await running.metric("reaped_total", kind="instances") == 0
