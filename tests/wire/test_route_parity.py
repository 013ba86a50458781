"""The route function decides as `dualmap.choose` does, on any state of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap.choose import POLICIES, choose, within_bound
from dualmap.outposts import Outposts
from dualmap.prefix_key import MAX_DEPTH
from dualmap.ttft import estimate
from dualmap.types import ChoiceRequest, ChoiceRule, Decision, InstanceView, PrefillSpeed
from dualmap_wire.redis_functions import (
    STALE_PERF_US,
    Overload,
    Perf,
    RouteCall,
    Routed,
    pack_hashes,
    parse_route,
    parse_views,
    parse_weighed,
)
from tests.wire.pool import SPEED, WirePool, perf, route_call

NAMES = ("w1", "w10", "w2", "W3", "é", "w-4.svc:80")
HASHES = [0x1000 + i for i in range(40)]

SPEEDS = st.builds(
    PrefillSpeed, st.sampled_from([0.0, 0.02]), st.floats(0, 1e-3), st.sampled_from([0.0, 3e-9, 1e-8])
)
# Coarse values beside fine ones: ties must fall alike too.
BOOKED_US = st.integers(0, 20).map(lambda half: half * 500_000) | st.integers(0, 30_000_000)
REQUESTS = st.builds(
    ChoiceRequest,
    prompt_tokens=st.integers(1, 40_000),
    chunk_tokens=st.sampled_from([512.0, 487.3, 1.0]) | st.floats(1.0, 2000.0),
    slo_s=st.sampled_from([0.5, 2.0, 5.0]),
)
RULES = st.builds(
    ChoiceRule,
    lambda_own=st.floats(0, 20),
    escape_at=st.floats(0, 1),
    escape_margin=st.floats(0, 0.3),
    paper_factor=st.floats(0.2, 1),
)


@dataclass(frozen=True)
class InstanceState:
    """What the store holds of one instance."""

    feasible_us: int
    infeasible_us: int
    owned_chunks: int
    perf: Perf | None
    running_is_booked: bool
    reported_ago_us: int


INSTANCES = st.builds(
    InstanceState,
    feasible_us=BOOKED_US,
    infeasible_us=BOOKED_US,
    owned_chunks=st.integers(0, len(HASHES)),
    perf=st.none()
    | st.builds(
        perf,
        speed=SPEEDS,
        router=st.just("r0"),
        charge=st.sampled_from(["", "running"]),
        elapsed_us=st.integers(-1000, 20_000_000),
        cost_us=st.integers(0, 20_000_000),
        feasible=st.booleans(),
        gives_way_us=st.just(0) | st.integers(1, 5_000_000),
        held=st.sampled_from([False, False, False, True]),
    ),
    running_is_booked=st.booleans(),
    reported_ago_us=st.sampled_from(
        [0, 0, 0, STALE_PERF_US - 500_000, STALE_PERF_US + 1, 10 * STALE_PERF_US]
    ),
)


def write(
    pool: WirePool, states: dict[str, InstanceState], splits: set[int], turn: int, outposts: dict[int, str]
) -> None:
    """Make the store hold a state, as the functions and their callers would have left it."""
    seconds, micros = pool.client.time()
    now_us = seconds * 1_000_000 + micros
    keys = pool.keys
    with pool.client.pipeline(transaction=False) as pipe:
        pipe.flushall()
        for name, state in states.items():
            # An idle instance has no field at all.
            for kind, us in (("f", state.feasible_us), ("i", state.infeasible_us)):
                if us:
                    pipe.hincrby(keys.charges, f"{kind}:{name}", us)
            if state.owned_chunks:
                owned = HASHES[: state.owned_chunks]
                pipe.zadd(keys.own(name), {pack_hashes([h]): -i for i, h in enumerate(owned)})
            if state.perf is not None:
                started_us = now_us - state.perf.started_us
                charge = state.perf.running_charge and f"run:{name}"
                packed = replace(
                    state.perf,
                    started_us=started_us,
                    running_charge=charge,
                    reported_us=now_us - state.reported_ago_us,
                ).pack()
                pipe.hset(keys.perf, name, packed)
                if charge and state.running_is_booked:
                    pipe.hset(keys.router_charges("r0"), charge, f"f {state.perf.cost_us} {name}")
        if splits:
            pipe.sadd(keys.key("keys", "splits"), *(pack_hashes([h]) for h in splits))
            pipe.hset(keys.key("keys"), mapping={"seen": 7, "total": "6.9", "version": len(splits)})
        for key, name in outposts.items():
            # Whichever generation it is in.
            pipe.hset(keys.key("outposts", *["older"] * (key % 2)), pack_hashes([key]), name)
        pipe.set(keys.key("turn"), turn)
        pipe.execute()


def decide(call: RouteCall, seen: Sequence[InstanceView], turn: int, outpost: str | None = None) -> Decision:
    """The core's decision over what `views` answers."""
    views = {view.instance: view for view in seen}
    in_order = sorted(views)
    others = [
        views[name]
        for name in in_order[call.start % len(views) :] + in_order[: call.start % len(views)]
        if name not in call.pair
    ]
    far = views.get(outpost) if outpost is not None and outpost not in call.pair else None
    return choose(call.request, [views[name] for name in call.pair], others, call.rule, turn, far)


def check(got: Routed, expected: Decision) -> None:
    assert (got.instance, got.backup, got.reason) == (expected.instance, expected.backup, expected.reason)
    chosen = expected.chosen
    assert (got.feasible, got.owned_chunks) == (chosen.feasible, chosen.owned_chunks)
    assert got.backup_owned_chunks == (expected.other.owned_chunks if expected.other is not None else 0)
    # Whole microseconds, rounded down.
    for got_s, expected_s in (
        (got.wait_s, chosen.wait_s),
        (got.own_s, chosen.own_s),
        (got.ttft_s, chosen.ttft_s),
    ):
        assert -1e-9 <= expected_s - got_s <= 1.001e-6


def check_weighed(got: Routed, call: RouteCall, seen: Sequence[InstanceView], outpost: str | None) -> None:
    """The pair in its order, then the outpost where the policy asks it."""
    views = {view.instance: view for view in seen}
    names = [*call.pair]
    if call.rule.policy == "dualmap" and outpost is not None and outpost in views.keys() - {*call.pair}:
        names.append(outpost)
    weighed = parse_weighed(got.weighed)
    assert [w.instance for w in weighed] == names
    for w in weighed:
        expected = estimate(call.request, views[w.instance], call.rule)
        assert w.owned_chunks == expected.owned_chunks
        assert -1e-9 <= expected.wait_s - w.wait_s <= 1.001e-6
        assert -1e-9 <= expected.own_s - w.own_s <= 1.001e-6


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=200)
@given(
    states=st.lists(INSTANCES, min_size=1, max_size=len(NAMES)),
    order=st.permutations(NAMES),
    request=REQUESTS,
    rule=RULES,
    chunks=st.integers(0, len(HASHES)),
    start=st.integers(0, 1000),
    turn=st.integers(0, 20),
    outpost=st.none() | st.sampled_from([*NAMES, "gone"]),
)
def test_any_state(
    pool: WirePool,
    policy: str,
    states: list[InstanceState],
    order: list[str],
    request: ChoiceRequest,
    rule: ChoiceRule,
    chunks: int,
    start: int,
    turn: int,
    outpost: str | None,
) -> None:
    names = order[: len(states)]
    key_depth = min(chunks, MAX_DEPTH)
    outposts = {HASHES[key_depth - 1]: outpost} if outpost is not None else {}
    write(pool, dict(zip(names, states, strict=True)), set(HASHES[:3]), turn, outposts)
    call = route_call(
        names,
        request=request,
        rule=replace(rule, policy=policy),
        hashes=HASHES[:chunks],
        key_depth=key_depth,
        start=start,
        book=False,
        count=False,
    )
    before = dump(pool)
    reply = pool.route_raw(call)
    got = parse_route(reply)
    assert isinstance(got, Routed)
    seen = pool.views(names, HASHES[:chunks], now_us=reply[-1])
    check(got, decide(call, seen, turn, outpost if chunks else None))
    check_weighed(got, call, seen, outpost if chunks else None)
    # A dry run leaves no trace.
    assert dump(pool) == before


@settings(max_examples=200)
@given(
    states=st.lists(INSTANCES, min_size=1, max_size=len(NAMES)),
    order=st.permutations(NAMES),
    request=REQUESTS,
    policy=st.sampled_from(list(POLICIES)),
    start=st.integers(0, 1000),
    max_wait_s=st.floats(0.1, 15.0),
)
def test_any_state_with_a_bound_on_the_wait(
    pool: WirePool,
    states: list[InstanceState],
    order: list[str],
    request: ChoiceRequest,
    policy: str,
    start: int,
    max_wait_s: float,
) -> None:
    names = order[: len(states)]
    write(pool, dict(zip(names, states, strict=True)), set(), 0, {})
    rule = ChoiceRule(policy=policy)
    call = route_call(names, request=request, rule=rule, start=start, max_wait_s=max_wait_s, book=False)
    seconds, micros = pool.client.time()
    reply = pool.route_raw(call)
    got = parse_route(reply)
    # An overload gives no time: that it is one must not depend on the moment.
    now_us = reply[-1] if isinstance(got, Routed) else seconds * 1_000_000 + micros
    seen = pool.views(names, [], now_us=now_us)
    free = decide(call, seen, 0)
    pair = [view for name in call.pair for view in seen if view.instance == name]
    in_order = sorted(names)[start % len(names) :] + sorted(names)[: start % len(names)]
    others = [v for name in in_order if name not in call.pair for v in seen if v.instance == name]
    expected = within_bound(free, request, [*pair, *others], rule, max_wait_s)
    if isinstance(got, Overload):
        assert expected is None
        assert got.wait_s > max_wait_s - 1e-6
    else:
        assert isinstance(got, Routed) and expected is not None
        check(got, expected)


def dump(pool: WirePool) -> dict[bytes, Any]:
    """Everything that the store holds."""
    return {key: pool.client.dump(key) for key in pool.client.scan_iter()}


@settings(max_examples=25)
@given(data=st.data())
def test_a_stream_of_bookings(pool: WirePool, data: st.DataObject) -> None:
    """State made by the functions themselves: bookings, folds, ownership, releases."""
    pool.client.flushall()
    names = NAMES[: data.draw(st.integers(2, len(NAMES)), label="instances")]
    for name in names:
        pool.register(name)
    fence = pool.lead("leader")
    booked: list[str] = []
    outposts = Outposts()
    turn = 0
    for step in range(12):
        if data.draw(st.booleans(), label="fold"):
            running = data.draw(st.sampled_from(["", *booked]))
            report = perf(
                data.draw(SPEEDS),
                "r1",
                running,
                data.draw(st.integers(0, 3_000_000)),
                2_000_000,
                data.draw(st.booleans()),
                gives_way_us=data.draw(st.sampled_from([0, 1, 700_000])),
            )
            assert pool.fold(fence, (data.draw(st.sampled_from(names)), 1, report)) == 1
        policy = data.draw(st.sampled_from(list(POLICIES)))
        hashes = HASHES[: data.draw(st.integers(0, len(HASHES)))]
        depth = min(len(hashes), data.draw(st.integers(0, 3)))
        call = route_call(
            names,
            charge=f"c{step}",
            request=data.draw(REQUESTS),
            rule=ChoiceRule(policy=policy),
            hashes=hashes,
            key_depth=depth,
            at_home=data.draw(st.booleans(), label="at home"),
            pair=data.draw(st.permutations(names))[:2],
            start=data.draw(st.integers(0, 10)),
        )
        # What it saw is what `views` answers before it, at the time that it gives.
        seen = pool.call("views", pack_hashes(hashes), "\n".join(names))
        reply = pool.route_raw(call)
        got = parse_route(reply)
        assert isinstance(got, Routed)
        outpost = outposts.get(hashes[depth - 1]) if depth else None
        views = parse_views([reply[-1], *seen[1:]], SPEED)
        check(got, decide(call, views, turn, outpost))
        check_weighed(got, call, views, outpost)
        if depth and policy == "dualmap" and not (call.at_home and got.instance in call.pair):
            outposts.put(hashes[depth - 1], got.instance)
        turn += policy == "round-robin"
        booked.append(call.charge_id)
        pool.own_add(got.instance, hashes)
        if data.draw(st.booleans(), label="release"):
            assert pool.call("release", "r1", booked.pop(0)) == 1
    pool.call("release", "r1", *booked)
    assert pool.charges() == {} and pool.router_charges("r1") == {}


def test_an_unknown_policy_books_nothing(pool: WirePool) -> None:
    with pytest.raises(redis.ResponseError, match="nil value"):
        pool.route(route_call(("a", "b"), rule=ChoiceRule(policy="fifo")))
    assert pool.client.keys() == []
