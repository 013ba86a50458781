"""A router's charges on a real Valkey: booked once, released once, and mended after a lost reply."""

import asyncio

import msgspec
import pytest

from dualmap.types import ChoiceRequest, ChoiceRule, PrefillSpeed
from dualmap_router.charges import Charges
from dualmap_service.access import AccessSettings
from dualmap_service.errors import StoreUnavailableError
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import RouteCall, Routed, pack_hashes, parse_route
from dualmap_wire.redis_keys import PoolKeys

KEYS = PoolKeys("p")
CALL = RouteCall(
    router="r",
    charge_id="",
    request=ChoiceRequest(1000, 512.0, 5.0),
    rule=ChoiceRule(),
    hashes=pack_hashes([1, 2]),
    key_depth=1,
    split_version=0,
    pair=["a", "b"],
    pool=b"a\nb",
    start=0,
    default_speed=PrefillSpeed(0.01, 1e-4, 0.0),
    count=False,
)


async def book(shared: Store, charges: Charges) -> tuple[str, Routed]:
    """Decide and book as the router does."""
    charge_id = charges.open()
    reply = await shared.function(
        "route", KEYS.prefix, *msgspec.structs.replace(CALL, charge_id=charge_id).args()
    )
    routed = parse_route(reply)
    assert isinstance(routed, Routed)
    charges.booked(charge_id, routed.instance, routed.own_s, routed.feasible)
    return charge_id, routed


async def held(shared: Store) -> tuple[int, int]:
    """(charge ids, microseconds) that Redis holds."""
    booked = await shared.command("HVALS", KEYS.charges)
    return await shared.command("HLEN", KEYS.router_charges("r")), sum(int(value) for value in booked)


async def test_booked_here_and_in_redis_alike(shared: Store) -> None:
    charges = Charges(shared, "p", "r")
    ids = [await book(shared, charges) for _ in range(6)]
    assert len(charges) == 6
    own_us = sum(sum(charges.own_us(name)) for name in ("a", "b"))
    assert await held(shared) == (6, own_us)
    assert own_us == pytest.approx(sum(routed.own_s for _, routed in ids) * 1e6, abs=6)
    for charge_id, _ in ids:
        charges.release(charge_id)
        charges.release(charge_id)
    assert (len(charges), charges.own_us("a"), charges.own_us("b")) == (0, (0, 0), (0, 0))
    assert await held(shared) == (0, 0)


async def test_classes_are_kept_apart(shared: Store) -> None:
    charges = Charges(shared, "p", "r")
    yes, no = charges.open(), charges.open()
    charges.booked(yes, "a", 1.5, True)
    charges.booked(no, "a", 0.5, False)
    assert charges.own_us("a") == (1_500_000, 500_000)
    charges.release(yes)
    assert charges.own_us("a") == (0, 500_000)


async def test_a_lost_reply_is_mended(shared: Store, store: EmbeddedStore) -> None:
    """The router gives up on a decision that Redis then makes and books all the same."""
    charges = Charges(shared, "p", "r")
    kept, _ = await book(shared, charges)
    charge_id = charges.open()
    await book_too_late(shared, store, charge_id)
    # Without its release, as when the connection is lost right then.
    charges._live.pop(charge_id)
    store.resume()
    await shared.command("PING", deadline_s=10.0)
    assert (await held(shared))[0] == 2
    assert await charges.reconcile() == 1
    assert (await held(shared))[0] == 1
    charges.release(kept)
    assert await held(shared) == (0, 0)


async def book_too_late(shared: Store, store: EmbeddedStore, charge_id: str) -> None:
    """Decide on a frozen store: the call misses its deadline, and books when the store goes on."""
    store.pause()
    late = shared.function(
        "route", KEYS.prefix, *msgspec.structs.replace(CALL, charge_id=charge_id).args(), deadline_s=0.02
    )
    with pytest.raises(StoreUnavailableError):
        await late


async def test_a_release_after_a_missed_deadline_is_enough(shared: Store, store: EmbeddedStore) -> None:
    charges = Charges(shared, "p", "r")
    charge_id = charges.open()
    await book_too_late(shared, store, charge_id)
    charges.release(charge_id)
    store.resume()
    await shared.command("PING", deadline_s=10.0)
    assert await held(shared) == (0, 0)


async def test_reconciling_spares_what_is_under_way(shared: Store) -> None:
    charges = Charges(shared, "p", "r")
    booked = await asyncio.gather(*(book(shared, charges) for _ in range(20)))
    assert await charges.reconcile() == 0
    assert (await held(shared))[0] == 20
    for charge_id, _ in booked:
        charges.release(charge_id)
    assert await charges.reconcile() == 0
    assert await held(shared) == (0, 0)


async def totals(shared: Store) -> dict[str, int]:
    """Microseconds that Redis has booked, by class and instance."""
    flat = await shared.command("HGETALL", KEYS.charges)
    return {name.decode(): int(us) for name, us in zip(flat[::2], flat[1::2], strict=True)}


def live(charges: Charges) -> dict[str, int]:
    """The same, as the router has it."""
    own = {name: charges.own_us(name) for name in ("a", "b")}
    by_class = {f"{kind}:{name}": us[i] for name, us in own.items() for i, kind in enumerate("fi")}
    return {field: us for field, us in by_class.items() if us}


async def test_what_was_decided_alone_is_booked_for_all_to_see(shared: Store) -> None:
    charges = Charges(shared, "p", "r")
    ids = [charges.open() for _ in range(3)]
    charges.book(ids[0], "a", 1.5, True)
    charges.book(ids[1], "a", 0.25, False)
    charges.book(ids[2], "b", 3.0, True)
    charges.release(ids[2])
    assert await held(shared) == (2, 1_750_000)
    assert await totals(shared) == live(charges) == {"f:a": 1_500_000, "i:a": 250_000}
    # Should the router die, they can be reaped.
    assert await shared.command("SMEMBERS", KEYS.routers) == [b"r"]
    assert await charges.reconcile() == 0
    for charge_id in ids:
        charges.release(charge_id)
    assert await held(shared) == (0, 0)


async def test_a_late_route_is_replaced_by_what_was_decided_alone(
    shared: Store, store: EmbeddedStore
) -> None:
    charges = Charges(shared, "p", "r")
    charge_id = charges.open()
    await book_too_late(shared, store, charge_id)
    charges.book(charge_id, "b", 2.0, False)
    store.resume()
    await shared.command("PING", deadline_s=10.0)
    assert await totals(shared) == {"i:b": 2_000_000}
    charges.release(charge_id)
    assert await held(shared) == (0, 0)


@pytest.mark.parametrize("lost", ["FLUSHALL", "one", "other"])
async def test_lost_charges_are_booked_again(shared: Store, lost: str) -> None:
    charges = Charges(shared, "p", "r")
    ids = [(await book(shared, charges))[0] for _ in range(5)]
    unbooked = charges.open()
    alone = charges.open()
    charges.book(alone, "a", 0.5, False)
    if lost == "FLUSHALL":
        await shared.command("FLUSHALL")
    elif lost == "one":
        await shared.function("release", KEYS.prefix, "r", ids[2])
    else:
        await shared.function("book", KEYS.prefix, "r", ids[2], "i", 77, "c")
    assert await totals(shared) != live(charges)
    assert await charges.reconcile() == (6 if lost == "FLUSHALL" else 1)
    assert await totals(shared) == live(charges)
    assert await charges.reconcile() == 0
    for charge_id in (*ids, alone, unbooked):
        charges.release(charge_id)
    assert await held(shared) == (0, 0)
    assert await shared.command("EXISTS", KEYS.charges, KEYS.router_charges("r")) == 0


async def test_a_release_during_a_reconcile_is_not_undone(shared: Store) -> None:
    charges = Charges(shared, "p", "r")
    ids = [(await book(shared, charges))[0] for _ in range(50)]
    await shared.command("FLUSHALL")
    mending = asyncio.create_task(charges.reconcile())
    for charge_id in ids:
        await asyncio.sleep(0)
        charges.release(charge_id)
    await mending
    assert await charges.reconcile() == 0
    assert await held(shared) == (0, 0)


async def test_another_routers_charges_are_its_own(shared: Store) -> None:
    mine, other = Charges(shared, "p", "r"), Charges(shared, "p", "other")
    charge_id, _ = await book(shared, mine)
    assert await other.reconcile() == 0
    assert (await held(shared))[0] == 1
    mine.release(charge_id)


async def test_a_router_that_starts_again_tells_its_predecessors_charges_from_its_own(shared: Store) -> None:
    before = Charges(shared, "p", "r")
    left_behind = {(await book(shared, before))[0] for _ in range(3)}
    after = Charges(shared, "p", "r")
    ids = {(await book(shared, after))[0] for _ in range(3)}
    assert not ids & left_behind
    assert (await held(shared))[0] == 6
    assert await after.reconcile() == 3
    assert await held(shared) == (3, sum(live(after).values()))
    # What the predecessor still sends for its own must not touch them.
    for charge_id in left_behind:
        before.release(charge_id)
    assert await held(shared) == (3, sum(live(after).values()))
    for charge_id in ids:
        after.release(charge_id)
    assert await held(shared) == (0, 0)


async def test_without_a_store_nothing_is_reconciled(store: EmbeddedStore) -> None:
    charges = Charges(Store(AccessSettings(redis_url=store.url), "never started"), "p", "r")
    charge_id = charges.open()
    charges.booked(charge_id, "a", 1.0, True)
    assert await charges.reconcile() == 0
    assert charges.own_us("a") == (1_000_000, 0)
    charges.release(charge_id)
    assert charges.own_us("a") == (0, 0)
