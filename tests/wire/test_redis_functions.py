"""Arguments and replies of the functions: exact bytes, strict readers, and the constants that Lua repeats."""

import contextlib
import re
from dataclasses import replace
from importlib import resources
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap import prefix_key
from dualmap.outposts import MAX_OUTPOSTS
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed, Reason, RunningPrefill
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire import redis_functions
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import (
    STALE_PERF_US,
    Overload,
    Perf,
    RouteCall,
    Routed,
    StaleSplits,
    Weighed,
    function_name,
    instance_view,
    library,
    pack_hashes,
    parse_perf,
    parse_route,
    parse_views,
    parse_weighed,
    unpack_hash,
    weigh,
)
from dualmap_wire.redis_keys import INSIDE_MS
from tests.wire.pool import SPEED, WirePool

OK = [b"ok", b"w1", b"w2", b"load", 1, 3, 2, 1_500_000, 250_000, 1_750_000, [[b"w1", 3, 7, 9]], 123]
VIEW = [b"w1", 1_000_000, 500_000, 3, b""]
U64 = st.integers(0, 2**64 - 1)


def test_lua_constants_equal_the_cores() -> None:
    source = resources.files("dualmap_wire").joinpath("redis_functions.lua").read_text(encoding="utf-8")
    constants = {}
    for name, value in re.findall(r"^local ([A-Z_]+) = ([0-9.^()/ ]+)$", source, re.MULTILINE):
        numbers = [float(number) for number in re.findall(r"[0-9.]+", value)]
        constants[name] = numbers[0] ** (numbers[1] / numbers[2]) if "^" in value else numbers[0]
    assert constants == {
        "DECAY": prefix_key.DECAY,
        "SPLIT_SHARE": prefix_key.SPLIT_SHARE,
        "MIN_SPLIT_COUNT": prefix_key.MIN_SPLIT_COUNT,
        "ROTATE_EVERY": prefix_key.ROTATE_EVERY,
        "MAX_SPLITS": prefix_key.MAX_SPLITS,
        "MAX_OUTPOSTS": MAX_OUTPOSTS,
        "STALE_US": STALE_PERF_US,
        "INSIDE_MS": INSIDE_MS,
    }


def test_two_releases_share_one_store(pool: WirePool, store: EmbeddedStore) -> None:
    suffix, source = library()
    other = source.replace(suffix, "0" * len(suffix))
    pool.client.function_load(other, replace=True)
    assert pool.lead("a") > 0
    assert pool.client.fcall("lead_" + "0" * len(suffix), 1, pool.keys.prefix, "b", 1000) == 0
    assert len(pool.client.function_list()) == 2


def test_every_function_is_registered_under_its_release(pool: WirePool) -> None:
    listed = pool.client.function_list()
    text = repr(listed)
    for name in ("route", "views", "release", "own_add", "register", "deregister", "members"):
        assert function_name(name) in text
    for name in ("lead", "resign", "fold", "reap"):
        assert function_name(name) in text


@given(st.lists(U64, max_size=40))
def test_hashes_pack_in_order(hashes: list[int]) -> None:
    packed = pack_hashes(hashes)
    assert [unpack_hash(packed[i : i + 8]) for i in range(0, len(packed), 8)] == hashes


def test_route_arguments_are_these_bytes() -> None:
    call = RouteCall(
        router="r1",
        charge_id="c1",
        request=ChoiceRequest(1000, 512.5, 5.0),
        rule=ChoiceRule("paper", 2.0, 0.75, 0.25, 0.5),
        hashes=pack_hashes([1, 2**64 - 1]),
        key_depth=2,
        split_version=9,
        pair=("a", "b"),
        pool=b"a\nb\nc",
        start=1,
        default_speed=PrefillSpeed(0.5, 0.25, 0.125),
        max_wait_s=30.0,
        count=False,
        book=True,
        at_home=False,
    )
    packed, hashes, pool = call.args()
    assert msgpack.unpackb(packed) == [
        "r1", "c1", "paper", 1000, 512.5, 5.0, 2.0, 0.75, 0.25, 0.5, 9, 2, 1, ["a", "b"],
        False, True, 30.0, [0.5, 0.25, 0.125], False,
    ]  # fmt: skip
    assert hashes == bytes(7) + b"\x01" + b"\xff" * 8
    assert pool == b"a\nb\nc"


def test_replies_of_route() -> None:
    assert parse_route(OK) == Routed("w1", "w2", Reason.LOAD, True, 3, 2, 1.5, 0.25, 1.75, [[b"w1", 3, 7, 9]])
    alone = parse_route([b"ok", b"w1", b"", b"only", 0, 0, 0, 0, 1, 1, [], 123])
    assert isinstance(alone, Routed) and alone.backup is None and not alone.feasible
    assert parse_route([b"stale", 0]) == StaleSplits(0, frozenset())
    assert parse_route([b"stale", 4, b"\0" * 7 + b"\x05"]) == StaleSplits(4, frozenset({5}))
    assert parse_route([b"overload", 2_500_000]) == Overload(2.5)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        b"ok",
        [],
        {},
        [b"maybe", 1],
        OK[:-1],
        [*OK, 1],
        [b"ok", 5, *OK[2:]],
        [b"ok", b"\xff", *OK[2:]],
        [*OK[:3], b"whim", *OK[4:]],
        [*OK[:7], None, *OK[8:]],
        [*OK[:7], b"soon", *OK[8:]],
        [b"stale"],
        [b"stale", None],
        [b"stale", 1, 5],
        [b"overload"],
        [b"overload", b"x"],
    ],
    ids=repr,
)
def test_bad_replies_of_route(reply: Any) -> None:
    with pytest.raises(WireError):
        parse_route(reply)


def test_what_a_decision_weighed() -> None:
    assert parse_weighed([weigh("w1", 3, 1.5, 0.25), [b"w2", 0, 0, 1]]) == [
        Weighed("w1", 3, 1.5, 0.25),
        Weighed("w2", 0, 0.0, 1e-6),
    ]
    for bad in ([[b"w1"]], [[5, 1, 1, 1]], [5], [[b"w1", 1, None, 1]], [[b"\xff", 1, 1, 1]]):
        with pytest.raises(WireError):
            parse_weighed(bad)  # type: ignore[arg-type]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | st.text(max_size=5)
GARBAGE = PLAIN | st.lists(PLAIN, max_size=12) | st.dictionaries(PLAIN, PLAIN, max_size=2)


@given(reply=GARBAGE | st.tuples(st.sampled_from([b"ok", b"stale", b"overload"]), PLAIN, PLAIN).map(list))
def test_garbage_raises_wire_error_and_nothing_else(reply: Any) -> None:
    for parse in (parse_route, lambda r: parse_views(r, SPEED)):
        with contextlib.suppress(WireError):
            parse(reply)


@given(payload=st.binary(max_size=60))
def test_garbage_in_perf(payload: bytes) -> None:
    try:
        got = parse_perf(payload)
    except WireError:
        return
    assert got is None or isinstance(got, Perf)


@pytest.mark.parametrize(
    "packed",
    [
        b"\xc1",
        b"junk",
        msgpack.packb(5),
        msgpack.packb([1.0] * 9),
        msgpack.packb([0.0, 0.0, 0.0, "r", "c", "soon", 0, 0, 0, 0]),
        msgpack.packb([0.0, 0.0, 0.0, 5, "c", 0, 0, 0, 0, 0]),
        msgpack.packb([None, 0.0, 0.0, "r", "c", 0, 0, 0, 0, 0]),
    ],
)
def test_bad_perf(packed: bytes) -> None:
    with pytest.raises(WireError):
        parse_perf(packed)
    with pytest.raises(WireError):
        parse_views([1, [b"w1", 0, 0, 0, packed]], SPEED)


def test_perf_is_these_bytes_both_ways() -> None:
    value = Perf(PrefillSpeed(0.5, 0.25, 0.125), "r1", "c1", 10**15, 2_000_000, True, False, 10**15 + 7)
    golden = bytes.fromhex(
        "9acb3fe0000000000000cb3fd0000000000000cb3fc0000000000000a27231a26331"
        "cf00038d7ea4c68000ce001e84800100cf00038d7ea4c68007"
    )
    assert value.pack() == golden
    assert parse_perf(golden) == value
    # The class is one number, so that nothing moves for whoever knows no preemption.
    for feasible, gives_way_us, number in ((False, 0, 0), (True, 0, 1), (False, 1, 2), (True, 7, 15)):
        other = replace(value, feasible=feasible, gives_way_us=gives_way_us)
        assert other.pack() == golden.replace(b"\x1e\x84\x80\x01", b"\x1e\x84\x80" + bytes([number]))
        assert parse_perf(other.pack()) == other
    assert parse_perf(b"") is None


def test_views_and_their_bad_replies() -> None:
    assert parse_views([5, VIEW], SPEED) == [InstanceView("w1", 1.0, 0.5, 3, SPEED)]
    for reply in (None, [], [5, [b"w1"]], [5, None], [5, [None, *VIEW[1:]]], [5, [b"w1", None, *VIEW[2:]]]):
        with pytest.raises(WireError):
            parse_views(reply, SPEED)  # type: ignore[arg-type]


@pytest.mark.parametrize(("age_us", "known"), [(0, True), (STALE_PERF_US, True), (STALE_PERF_US + 1, False)])
def test_stale_telemetry_says_nothing_of_now_but_keeps_its_speed(age_us: int, known: bool) -> None:
    now_us = 10**15
    speed = PrefillSpeed(1.0, 1.0, 1.0)
    perf = Perf(speed, "r", "c", now_us - 3_000_000, 4_000_000, False, True, now_us - age_us, 500_000)
    view = instance_view("w", 0, 0, 0, perf, now_us, SPEED)
    assert view.speed == speed
    assert view.held is known
    assert view.running == (RunningPrefill(4.0, 3.0, False, 0.5) if known else None)
    assert redis_functions.instance_view("w", 0, 0, 0, None, now_us, SPEED).speed == SPEED
