"""Placement on a real Valkey: what is asked of the route function, and what holds without it."""

from collections.abc import Sequence

import pytest

from dualmap.types import ChoiceRule, Reason
from dualmap_router.charges import Charges
from dualmap_router.errors import ApiError
from dualmap_router.flight import Flight
from dualmap_router.placement import Placement
from dualmap_router.prompt import Prompt
from dualmap_router.request import InferenceRequest
from dualmap_router.settings import RouterSettings
from dualmap_router.submission import make_submit
from dualmap_service.access import AccessSettings
from dualmap_service.registry import Member, Membership
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_functions import library, pack_hashes
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.telemetry import Registration
from dualmap_wire.v1 import worker_pb2 as pb

KEYS = PoolKeys("p")
RULE = ChoiceRule()
TEXT = b"lorem ipsum " * 1000


def membership(names: Sequence[str], version: int = 1) -> Membership:
    """Instances that are alive and take new keys."""
    return Membership(version, {name: Member(registration(name), True, None) for name in names})


def registration(name: str) -> Registration:
    return Registration(
        instance=name, pool="p", model="m", grpc_address="", telemetry_address="", generation=1
    )


def a_placement(
    shared: Store,
    names: Sequence[str] = ("a", "b", "c"),
    max_wait_s: float = 0.0,
    deadline_ms: float = 1000.0,
) -> Placement:
    """A router's placement over instances that it can all reach."""
    settings = RouterSettings(pool="p", max_wait_s=max_wait_s, route_deadline_ms=deadline_ms)
    placement = Placement(settings, "r", shared, Charges(shared, "p", "r"))
    placement.pool.update(membership(names), set(names))
    return placement


def a_prompt(placement: Placement, text: bytes = TEXT) -> Prompt:
    return placement.prompt(inference(text), "", None)


def inference(text: bytes = TEXT, model: str | None = None, tokens: int | None = None) -> InferenceRequest:
    return InferenceRequest(model, False, False, False, text, tokens, "", 0)


class NoSink:
    """Where nothing is answered."""

    answered = False
    status = 0

    async def head(self, status: int, headers: Sequence[pb.Header], flight: Flight) -> None: ...

    async def data(self, chunk: bytes) -> None: ...

    async def end(self) -> None: ...

    async def broken(self, message: str) -> None: ...


async def register_all(shared: Store) -> None:
    for name in "abc":
        await shared.function("register", KEYS.prefix, name, b"{}", "1", 60_000)


async def rings_made(placement: Placement) -> None:
    assert placement.pool._rings._making is not None
    await placement.pool._rings._making


async def test_only_text_teaches_bytes_per_token(shared: Store) -> None:
    placement = a_placement(shared)
    placement.count_tokens(placement.prompt(inference(tokens=3000), "", None), 6000)
    assert placement.tokens.bytes_per_token == 4.0
    placement.count_tokens(a_prompt(placement), 6000)
    assert placement.tokens.bytes_per_token == 2.0


# The call


async def test_only_a_first_placement_counts_and_can_be_refused(shared: Store) -> None:
    placement = a_placement(shared, max_wait_s=7.0)
    prompt = a_prompt(placement)
    asked = {
        "first": placement.route_call(prompt, 5.0, RULE)[0],
        "again": placement.route_call(prompt, 5.0, RULE, first=False)[0],
        "moved": placement.route_call(prompt, 5.0, RULE, target="a", first=False)[0],
        "dry": placement.route_call(prompt, 5.0, RULE, book=False)[0],
    }
    assert {name: (call.count, call.book, call.max_wait_s) for name, call in asked.items()} == {
        "first": (True, True, 7.0),
        "again": (False, True, 0.0),
        "moved": (False, True, 0.0),
        "dry": (False, False, 0.0),
    }
    assert asked["first"].pool == b"a\nb\nc"
    assert (asked["moved"].pool, asked["moved"].pair) == (b"a", ["a"])


@pytest.mark.parametrize(
    ("max_wait_s", "shed_at", "slo_s", "bound_s"),
    [
        (120.0, 0.0, 5.0, 120.0),
        (120.0, 0.5, 5.0, 2.5),
        (2.0, 0.5, 5.0, 2.0),
        (0.0, 0.5, 60.0, 30.0),
        (0, 0, 5.0, 0),
    ],
)
async def test_the_wait_is_bounded_by_time_and_by_the_objective(
    shared: Store, max_wait_s: float, shed_at: float, slo_s: float, bound_s: float
) -> None:
    settings = RouterSettings(pool="p", max_wait_s=max_wait_s, shed_at=shed_at)
    placement = Placement(settings, "r", shared, Charges(shared, "p", "r"))
    placement.pool.update(membership("abc"), set("abc"))
    prompt = a_prompt(placement)
    assert placement.route_call(prompt, slo_s, RULE)[0].max_wait_s == bound_s
    assert placement.route_call(prompt, slo_s, RULE, first=False)[0].max_wait_s == 0.0


async def test_a_prompt_without_a_full_chunk_does_not_count(shared: Store) -> None:
    placement = a_placement(shared)
    assert not placement.route_call(a_prompt(placement, b"hello"), 5.0, RULE)[0].count


async def test_lost_instances_are_not_offered(shared: Store) -> None:
    placement = a_placement(shared)
    prompt = a_prompt(placement)
    call, candidates = placement.route_call(prompt, 5.0, RULE, exclude={"a", "b"})
    assert (call.pool, call.pair, len(candidates)) == (b"c", ["c"], 2)
    with pytest.raises(ApiError) as refused:
        placement.route_call(prompt, 5.0, RULE, exclude={"a", "b", "c"})
    assert refused.value.status == 503


async def test_the_same_prompt_meets_its_cache(shared: Store) -> None:
    placement = a_placement(shared)
    await register_all(shared)
    one = await placement.place(a_prompt(placement), 5.0, RULE)
    placement.charges.release(one.charge_id)
    two = await placement.place(a_prompt(placement), 5.0, RULE)
    placement.charges.release(two.charge_id)
    assert (one.instance, one.owned_chunks, one.shared) == (two.instance, 0, True)
    assert (two.owned_chunks, two.reason) == (len(TEXT) // 2048, Reason.AFFINITY)
    assert two.cached_tokens == pytest.approx(two.owned_chunks * 512, abs=5)


async def test_without_a_store_the_rings_decide(store: EmbeddedStore) -> None:
    placement = a_placement(Store(AccessSettings(redis_url=store.url), "never started"), max_wait_s=1.0)
    prompt = a_prompt(placement)
    placed = [await placement.place(prompt, 5.0, RULE) for _ in range(4)]
    assert {one.shared for one in placed} == {False}
    assert {one.instance for one in placed} <= set(placed[0].candidates)
    with pytest.raises(ApiError) as refused:
        for _ in range(100):
            placed.append(await placement.place(prompt, 5.0, RULE))
    assert refused.value.status == 429
    # Whoever is outside the pair is full as well by then.
    assert {one.instance for one in placed} == set("abc")
    assert len(placement.charges) == len(placed)
    for one in placed:
        placement.charges.release(one.charge_id)
    assert [placement.charges.own_us(name) for name in "abc"] == [(0, 0)] * 3


async def test_a_decision_made_alone_is_booked_when_the_store_can_hear(
    shared: Store, store: EmbeddedStore
) -> None:
    placement = a_placement(shared, deadline_ms=20.0)
    await register_all(shared)
    store.pause()
    placed = await placement.place(a_prompt(placement), 5.0, RULE)
    assert not placed.shared
    store.resume()
    booked = await shared.command("HGETALL", KEYS.router_charges("r"), deadline_s=10.0)
    cost_us = sum(placement.charges.own_us(placed.instance))
    assert booked == [placed.charge_id.encode(), f"f {cost_us} {placed.instance}".encode()]
    assert await shared.command("ZCARD", KEYS.own(placed.instance)) == len(TEXT) // 2048
    placement.charges.release(placed.charge_id)
    assert await shared.command("EXISTS", KEYS.charges, KEYS.router_charges("r")) == 0


async def test_a_flush_brings_back_the_empty_split_set(shared: Store) -> None:
    """The router knows a later version than the store: it takes what is there, and counting starts anew."""
    placement = a_placement(shared)
    prompt = a_prompt(placement)

    async def place() -> None:
        placement.charges.release((await placement.place(prompt, 5.0, RULE)).charge_id)

    for _ in range(20):
        await place()
    version = placement.split_version
    assert placement.splits == {prompt.hashes[0]}
    assert version > 0
    await shared.command("FLUSHALL")
    await place()
    assert (placement.splits, placement.split_version) == (frozenset(), 0)
    assert await shared.command("HGET", KEYS.key("keys"), "seen") == b"1"
    for _ in range(20):
        await place()
    assert placement.splits == {prompt.hashes[0]}
    assert placement.split_version > version


async def test_the_backups_cache_is_known(shared: Store) -> None:
    """What both candidates hold decides where a queued request is worth moving to."""
    placement = a_placement(shared)
    await register_all(shared)
    prompt = a_prompt(placement)
    first, second = placement.pool.rings.candidates(prompt.key(frozenset())[0])
    for name, depth in ((first, len(prompt.hashes)), (second, 3)):
        await shared.function("own_add", KEYS.prefix, name, "1", 1000, pack_hashes(prompt.hashes[:depth]))
    placed = await placement.place(prompt, 5.0, RULE)
    placement.charges.release(placed.charge_id)
    assert (placed.instance, placed.backup) == (first, second)
    assert placed.backup_cached_tokens == int(3 * prompt.chunk_tokens)
    flight = Flight("id", "POST", "/v1/completions", "/v1/completions", [], b"", 0.0, NoSink(), prompt=prompt)
    sent = make_submit(flight, placed).placement
    assert (sent.backup, sent.backup_cached_tokens) == (second, placed.backup_cached_tokens)


async def test_while_rings_are_made_nobody_who_left_is_offered(shared: Store) -> None:
    names = [f"w{i:02}" for i in range(40)]
    placement = a_placement(shared, names)
    assert placement.usable == ()
    await rings_made(placement)
    assert placement.usable == tuple(names)
    placement.pool.update(membership([*names[1:], "w99"]), {*names, "w99"})
    assert placement.usable == tuple(names[1:])
    await rings_made(placement)
    assert placement.usable == (*names[1:], "w99")


async def test_a_reply_of_another_release_is_no_decision(shared: Store) -> None:
    """Decided alone, as while Redis is away: no client hears of it."""
    placement = a_placement(shared)
    suffix, source = library()
    body = "redis.register_function('route_@', function() return {'ok', 'a', 1} end)".replace("@", suffix)
    await shared.command("FUNCTION", "LOAD", "REPLACE", source.split("\n")[0] + "\n" + body)
    placed = await placement.place(a_prompt(placement), 5.0, RULE)
    assert not placed.shared
    assert placed.instance in placement.usable
    placement.charges.release(placed.charge_id)
    assert len(placement.charges) == 0
