"""Leases and the membership that others see of them."""

import asyncio
import time
from types import SimpleNamespace

import msgspec
import pytest

from dualmap_service.registry import Lease, Membership, MembershipWatch
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_keys import LEASE_MS, PoolKeys
from dualmap_wire.telemetry import Registration, encode_registration

from ...waiting import eventually

KEYS = PoolKeys("p")


def registration(instance: str = "a", generation: int = 1, state: str = "active") -> Registration:
    return Registration(
        instance=instance, pool="p", model="m", grpc_address="127.0.0.1:1", telemetry_address="tcp://127.0.0.1:2",
        generation=generation, state=state,
    )  # fmt: skip


async def test_instances_come_change_and_leave(shared: Store) -> None:
    watch, seen = MembershipWatch(shared, "p"), list[Membership]()
    watch.on_change.append(seen.append)
    assert await watch.poll()
    assert (dict(watch.current.members), len(seen)) == ({}, 0)

    lease = Lease(shared, registration())
    assert await lease.renew()
    assert await watch.poll()
    member = watch.current.members["a"]
    assert (member.registration, member.alive, member.takes_new_keys) == (registration(), True, True)
    # A renewal is no change.
    await lease.renew()
    await watch.poll()
    assert len(seen) == 1

    lease.registration = msgspec.structs.replace(lease.registration, state="draining")
    await lease.renew()
    await watch.poll()
    assert watch.current.members["a"].alive
    assert not watch.current.members["a"].takes_new_keys
    assert len(seen) == 2

    await lease.drop()
    await watch.poll()
    assert (dict(watch.current.members), len(seen)) == ({}, 3)


async def test_a_lease_that_lapses_shows_as_dead(shared: Store) -> None:
    watch = MembershipWatch(shared, "p")
    await Lease(shared, registration()).renew()
    await watch.poll()
    assert watch.current.members["a"].alive
    await shared.command("DEL", KEYS.instance_lease("a"))
    await watch.poll()
    assert not watch.current.members["a"].alive
    assert not watch.current.members["a"].takes_new_keys


async def test_an_older_generation_drops_no_newer_one(shared: Store) -> None:
    watch = MembershipWatch(shared, "p")
    old, new = Lease(shared, registration(generation=1)), Lease(shared, registration(generation=2))
    await old.renew()
    await new.renew()
    await old.drop()
    await watch.poll()
    assert watch.current.members["a"].registration.generation == 2


async def test_a_name_that_a_later_start_keeps_is_taken(
    shared: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock_s = time.monotonic()
    monkeypatch.setattr("dualmap_service.registry.time", SimpleNamespace(monotonic=lambda: clock_s))
    watch = MembershipWatch(shared, "p")
    old, new = Lease(shared, registration(generation=1)), Lease(shared, registration(generation=2))
    assert await old.renew()
    assert await new.renew()
    assert not await old.renew()
    assert [record.getMessage() for record in caplog.records] == ["registry.name_taken"]
    await watch.poll()
    assert watch.current.members["a"].registration.generation == 2
    # A holder that died keeps it for no longer than its lease.
    clock_s += LEASE_MS / 1000
    assert not await old.renew()
    assert not old.taken
    clock_s += LEASE_MS / 1000 + 0.1
    assert not await old.renew()
    assert old.taken
    await new.drop()
    assert await old.renew()
    assert not old.taken


async def test_an_outage_says_nothing_of_who_has_the_name(
    shared: Store, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = time.monotonic()
    monkeypatch.setattr("dualmap_service.registry.time", SimpleNamespace(monotonic=lambda: clock_s))
    late, early = Lease(shared, registration(generation=2)), Lease(shared, registration(generation=1))
    assert await late.renew()
    assert not await early.renew()
    store.pause()
    try:
        assert not await early.renew()
    finally:
        store.resume()
    clock_s += 10 * LEASE_MS / 1000
    assert not early.taken
    await eventually(lambda: shared.available)
    assert await late.renew()
    assert not await early.renew()
    assert not early.taken, "refused once since then"


async def test_a_renewal_under_way_brings_nobody_back(shared: Store, store: EmbeddedStore) -> None:
    watch, lease = MembershipWatch(shared, "p"), Lease(shared, registration())
    store.pause()
    renewal = asyncio.create_task(lease.renew())
    await asyncio.sleep(0)
    farewell = asyncio.create_task(lease.drop())
    await asyncio.sleep(0.01)
    store.resume()
    await asyncio.gather(renewal, farewell)
    await watch.poll()
    assert not watch.current.members


async def test_an_outage_leaves_the_last_known(shared: Store, store: EmbeddedStore) -> None:
    watch, lease = MembershipWatch(shared, "p"), Lease(shared, registration())
    await lease.renew()
    await watch.poll()
    store.kill()
    await eventually(lambda: not shared.available)
    assert not await watch.poll()
    assert not await lease.renew()
    assert list(watch.current.members) == ["a"]
    await store.restart()
    await eventually(watch.poll)
    # The store is empty, and the worker has had no time yet to say that it lives.
    assert watch.current.members["a"].alive
    await eventually(lease.renew)
    await watch.poll()
    assert list(watch.current.members) == ["a"]


async def test_a_lease_that_was_given_up_stays_so(shared: Store) -> None:
    watch, lease = MembershipWatch(shared, "p"), Lease(shared, registration())
    await lease.renew()
    await lease.drop()
    assert not await lease.renew()
    await watch.poll()
    assert not watch.current.members


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b"junk", b"{]"),
        (b"\xff", encode_registration(registration())),
        (b"deep", b'{"x":' + b"[" * 5000),
        # As many ring points would fill every router's memory.
        (b"heavy", encode_registration(msgspec.structs.replace(registration(), weight=1e9))),
    ],
)
async def test_an_entry_without_meaning_hides_no_other(shared: Store, name: bytes, entry: bytes) -> None:
    watch = MembershipWatch(shared, "p")
    await Lease(shared, registration()).renew()
    await shared.function("register", KEYS.prefix, name, entry, "1", 3000)
    assert await watch.poll()
    assert list(watch.current.members) == ["a"]


async def test_the_watch_renews_its_routers_lease(shared: Store) -> None:
    task = asyncio.create_task(MembershipWatch(shared, "p", "r").run(0.01))

    async def held() -> bool:
        return bool(await shared.command("PTTL", KEYS.router_lease("r")) > 0)

    try:
        await eventually(held)
        await shared.command("DEL", KEYS.router_lease("r"))
        await eventually(held)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
