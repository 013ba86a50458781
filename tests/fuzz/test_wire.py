"""What arrives over ZeroMQ and from Redis: a value or WireError, whatever the bytes."""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.types import InstanceView, PrefillSpeed, Reason
from dualmap_service.registry import parse_members
from dualmap_wire.board import Board, Posted, decode_board, encode_board
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import (
    Entered,
    Overload,
    Perf,
    Routed,
    StaleSplits,
    parse_enter,
    parse_perf,
    parse_route,
    parse_views,
    parse_weighed,
)
from dualmap_wire.telemetry import (
    QueueReport,
    Registration,
    decode_registration,
    decode_report,
    encode_registration,
)
from dualmap_worker.errors import KvEventError
from dualmap_worker.kv_wire import KvEvent, decode_batch

from .strategies import INTS, SCALARS, damaged, json_texts, json_values, values

NAMES = st.sampled_from(
    [
        "instance",
        "pool",
        "generation",
        "queued",
        "running",
        "speed",
        "hot",
        "instances",
        "moves",
        "type",
        "block_hashes",
    ]
)
STORED = ["BlockStored", [1, 2], None, [5, 6, 7], 16, None, "GPU"]
BATCHES = (
    [
        1.0,
        [{"type": "BlockStored", "block_hashes": [1, b"2"], "parent_block_hash": None, "block_size": 16}],
        0,
    ],
    [1.0, [STORED, ["BlockRemoved", [1], "GPU"], ["AllBlocksCleared"]]],
)
BOARD = encode_board(Board(rebalancer="r", hot=("a",), instances={"a": Posted(0.1, 2, 1.0)}))
REGISTRATION = Registration(
    instance="a", pool="p", model="m", grpc_address="h:1", telemetry_address="tcp://h:2", generation=1
)
PERF = Perf(PrefillSpeed(0.1, 1e-4, 0.0), "r", "c", 5, 6, True, False, 7, 8).pack()
# Deeper than decoders recurse: a list or a map within itself, whole or cut off.
DEEP = st.builds(
    lambda opening, depth, end: opening * depth + end,
    st.sampled_from([b"\x91", b"\x81\xa1x"]),
    st.sampled_from([3, 3000]),
    st.sampled_from([b"\xc0", b""]),
)
# In a field that no release knows: of a map, and of an event in a batch.
HIDDEN = st.tuples(st.sampled_from([b"\x81\xa1x", b"\x92\xcb" + bytes(8) + b"\x91\x81\xa1x"]), DEEP).map(
    b"".join
)


def packed(value: Any) -> bytes:
    """Msgpack; what it cannot say is said as text."""
    return msgpack.packb(value, default=str)


# What Redis says: RESP knows these, at any place.
REPLIES = values(SCALARS)


def near(reply: list[Any]) -> st.SearchStrategy[Any]:
    """Anything, or this reply with one item changed, one more or one less."""
    change = st.tuples(st.integers(0, len(reply) - 1), REPLIES).map(
        lambda at: [*reply[: at[0]], at[1], *reply[at[0] + 1 :]]
    )
    return REPLIES | change | st.just(reply[:-1]) | REPLIES.map(lambda more: [*reply, more])


PACKABLE = values(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9)
    | st.text(st.characters(codec="utf-8"), max_size=9),
    NAMES,
)  # fmt: skip
MESSAGES = st.one_of(
    st.binary(max_size=60),
    PACKABLE.map(packed),
    HIDDEN,
    st.sampled_from([*map(packed, BATCHES), BOARD, PERF]).flatmap(damaged),
    # A size that nothing behind it lives up to.
    st.sampled_from(
        [b"\xdd\xff\xff\xff\xff", b"\x92\xcb" + bytes(8) + b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
    ),
)


@given(MESSAGES)
def test_kv_events(payload: bytes) -> None:
    try:
        events = decode_batch(payload)
    except KvEventError:
        return
    assert all(isinstance(event, KvEvent) and isinstance(event.type, str) for event in events)


@pytest.mark.parametrize("batch", BATCHES)
@given(data=st.data())
def test_a_later_release_of_vllm_adds_what_it_likes(batch: list[Any], data: st.DataObject) -> None:
    event = batch[1][0]
    more = data.draw(PACKABLE)
    event = {**event, "x": more} if isinstance(event, dict) else [*event, more]
    assert decode_batch(packed([1.0, [event], 0, more]))[0].block_size == 16


@pytest.mark.parametrize(("decode", "kind"), [(decode_report, QueueReport), (decode_board, Board)])
@given(payload=MESSAGES)
def test_reports_and_boards(decode: Callable[[bytes], object], kind: type, payload: bytes) -> None:
    try:
        assert isinstance(decode(payload), kind)
    except WireError:
        return


@given(json_texts(json_values(NAMES)) | st.binary(max_size=60))
def test_registrations(payload: bytes) -> None:
    try:
        got = decode_registration(payload)
    except WireError:
        return
    assert isinstance(got, Registration)
    assert 0 < got.weight <= 100


ENTRY = [b"a", encode_registration(REGISTRATION), 1, 1, PERF]


@given(near([3, 10**15]) | near(ENTRY).map(lambda entry: [3, 10**15, entry, ENTRY]))
def test_members_of_another_release(reply: Any) -> None:
    try:
        got = parse_members(reply)
    except WireError:
        return
    # What is none of ours takes none of ours away.
    if isinstance(reply, list) and ENTRY in reply[2:]:
        assert got.members["a"].registration == REGISTRATION


OK = [
    b"ok",
    b"a",
    b"b",
    str(next(iter(Reason))).encode(),
    1,
    3,
    0,
    1000,
    2000,
    3000,
    [[b"a", 3, 1000, 2000]],
    5,
]


@given(near(OK) | near([b"stale", b"3", b"12345678"]) | near([b"overload", 1000]))
def test_a_decision_of_another_release(reply: Any) -> None:
    try:
        got = parse_route(reply)
    except WireError:
        return
    if isinstance(got, Routed):
        assert all(isinstance(n, int) for n in (got.owned_chunks, got.backup_owned_chunks))
        assert all(isinstance(s, float) for s in (got.wait_s, got.own_s, got.ttft_s))
        try:
            parse_weighed(got.weighed)
        except WireError:
            return
    elif isinstance(got, StaleSplits):
        assert isinstance(got.version, int)
        assert all(isinstance(split, int) for split in got.splits)
    else:
        assert isinstance(got, Overload)
        assert isinstance(got.wait_s, float)


@given(near([b"ok", 0, 5, 1000, 2, 77]))
def test_a_tenants_entry_of_another_release(reply: Any) -> None:
    try:
        got = parse_enter(reply)
    except WireError:
        return
    assert isinstance(got, Entered)
    assert isinstance(got.remaining, int)
    assert isinstance(got.routers, int)


@given(near([10**15, [b"a", 5, 6, 3, PERF], [b"b", 0, 0, 0, b""]]))
def test_views_of_another_release(reply: Any) -> None:
    try:
        views = parse_views(reply, PrefillSpeed(0.1, 1e-4, 0.0))
    except WireError:
        return
    for view in views:
        assert isinstance(view, InstanceView)
        assert isinstance(view.owned_chunks, int)
        assert isinstance(view.feasible_s + view.infeasible_s, float)


@given(st.none() | st.binary(max_size=60) | damaged(PERF) | DEEP | st.lists(INTS).map(str).map(str.encode))
def test_perf(data: bytes | None) -> None:
    try:
        got = parse_perf(data or b"")
    except WireError:
        return
    assert got is None or isinstance(got, Perf)


def test_the_examples_are_what_they_are_taken_for() -> None:
    assert [event.type for event in decode_batch(packed(BATCHES[1]))][1:] == [
        "BlockRemoved",
        "AllBlocksCleared",
    ]
    assert isinstance(parse_route(OK), Routed)
    assert parse_perf(PERF) is not None
    assert decode_board(BOARD).hot == ("a",)
    with pytest.raises(WireError):
        decode_report(msgspec.msgpack.encode({}))
