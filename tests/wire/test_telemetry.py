"""Telemetry and registrations: golden bytes both ways; anything else is a WireError."""

from dataclasses import fields
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.types import PrefillSpeed
from dualmap_wire.errors import WireError
from dualmap_wire.telemetry import (
    QUEUE_TOPIC,
    QueuedReport,
    QueueReport,
    Registration,
    RunningReport,
    decode_registration,
    decode_report,
    encode_registration,
    encode_report,
)

REPORT = QueueReport(
    instance="w1",
    pool="p",
    generation=3,
    state="active",
    speed=(0.5, 0.25, 0.125),
    fit_samples=2,
    fit_residual=0.5,
    bytes_per_token=4.0,
    busy_s=1.5,
    held=False,
    queued_total=1,
    queued=(
        QueuedReport(
            request_id="q", waited_s=0.5, own_s=0.25, slo_s=5.0, prompt_tokens=9, backup="w2", tenant="acme"
        ),
    ),
    running=RunningReport(router="r1", charge_id="c", elapsed_s=0.5, cost_s=1.0, feasible=True),
    kv_use=0.5,
    preemptible_s=0.25,
    preemptions=7,
    tenants_left_s={"acme": -0.5},
)
REPORT_BYTES = bytes.fromhex(
    "de0016a8696e7374616e6365a27731a4706f6f6ca170aa67656e65726174696f6e03a57374617465a6616374697665a5"
    "737065656493cb3fe0000000000000cb3fd0000000000000cb3fc0000000000000ab6669745f73616d706c657302ac66"
    "69745f726573696475616ccb3fe0000000000000af62797465735f7065725f746f6b656ecb4010000000000000a66275"
    "73795f73cb3ff8000000000000a468656c64c2ac7175657565645f746f74616c01a6717565756564918caa7265717565"
    "73745f6964a171a87761697465645f73cb3fe0000000000000a56f776e5f73cb3fd0000000000000a5736c6f5f73cb40"
    "14000000000000ad70726f6d70745f746f6b656e7309ad6361636865645f746f6b656e7300a87072696f7269747900a8"
    "6665617369626c65c3a76d6f7661626c65c3a66261636b7570a27732b46261636b75705f6361636865645f746f6b656e"
    "7300a674656e616e74a461636d65a772756e6e696e6786a6726f75746572a27231a96368617267655f6964a163a9656c"
    "61707365645f73cb3fe0000000000000a6636f73745f73cb3ff0000000000000a86665617369626c65c3ab6769766573"
    "5f7761795f73c0ae656e67696e655f72756e6e696e6700ae656e67696e655f77616974696e6700a66b765f757365cb3f"
    "e0000000000000a96b765f6576656e7473c2ae6b765f6576656e74735f6c6f737400ac6f776e65645f6368756e6b7300"
    "ad707265656d707469626c655f73cb3fd0000000000000ab707265656d7074696f6e7307ae74656e616e74735f6c6566"
    "745f7381a461636d65cbbfe0000000000000"
)
REGISTRATION = Registration(
    instance="w1",
    pool="p",
    model="m",
    grpc_address="127.0.0.1:1",
    telemetry_address="tcp://127.0.0.1:2",
    generation=3,
    adapters=("lora",),
    aliases=("m-v2",),
)
REGISTRATION_BYTES = (
    b'{"instance":"w1","pool":"p","model":"m","grpc_address":"127.0.0.1:1",'
    b'"telemetry_address":"tcp://127.0.0.1:2","generation":3,"weight":1.0,"state":"active",'
    b'"kv_tokens":0,"adapters":["lora"],"max_model_len":0,"bytes_per_token":4.0,"aliases":["m-v2"],'
    b'"kv_events":false}'
)


def test_a_report_is_these_bytes_both_ways() -> None:
    assert encode_report(REPORT) == REPORT_BYTES
    assert decode_report(REPORT_BYTES) == REPORT
    assert REPORT.prefill_speed == PrefillSpeed(0.5, 0.25, 0.125)
    assert len(fields(PrefillSpeed)) == 3
    assert QUEUE_TOPIC == b"dualmap.queue"


def test_a_registration_is_these_bytes_both_ways() -> None:
    assert encode_registration(REGISTRATION) == REGISTRATION_BYTES
    assert decode_registration(REGISTRATION_BYTES) == REGISTRATION
    assert REGISTRATION.serves == ("m", "m-v2", "lora")


def as_map(payload: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = msgpack.unpackb(payload)
    return decoded


def test_another_releases_fields_are_ignored_and_defaults_fill_in() -> None:
    newer = as_map(REPORT_BYTES) | {"of_tomorrow": [1, 2]}
    assert decode_report(msgpack.packb(newer)) == REPORT
    older = as_map(REPORT_BYTES)
    for name in ("running", "engine_running", "engine_waiting", "kv_use", "tenants_left_s"):
        del older[name]
    del older["queued"][0]["tenant"]
    decoded = decode_report(msgpack.packb(older))
    assert (decoded.running, decoded.tenants_left_s, decoded.queued[0].tenant) == (None, {}, "")
    assert decode_registration(REGISTRATION_BYTES.replace(b'"weight":1.0,', b"")) == REGISTRATION
    assert decode_registration(REGISTRATION_BYTES.replace(b',"aliases":["m-v2"]', b"")).aliases == ()


@pytest.mark.parametrize("name", [f.name for f in msgspec.structs.fields(QueueReport) if f.required])
def test_a_missing_field_is_an_error(name: str) -> None:
    report = as_map(REPORT_BYTES)
    del report[name]
    with pytest.raises(WireError, match=name):
        decode_report(msgpack.packb(report))


@pytest.mark.parametrize(
    "change",
    [
        {"speed": [1.0, 2.0]},
        {"generation": "3"},
        {"held": 1},
        {"queued": [{}]},
        {"running": {"router": "r"}},
        {"queued": [as_map(REPORT_BYTES)["queued"][0] | {"tenant": "t" * 65}]},
    ],
    ids=repr,
)
def test_a_wrong_type_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        decode_report(msgpack.packb(as_map(REPORT_BYTES) | change))


@given(cut=st.integers(0, 10_000))
def test_a_cut_payload_is_an_error(cut: int) -> None:
    with pytest.raises(WireError):
        decode_report(REPORT_BYTES[: cut % len(REPORT_BYTES)])
    with pytest.raises(WireError):
        decode_registration(REGISTRATION_BYTES[: cut % len(REGISTRATION_BYTES)])


@given(payload=st.binary(max_size=80))
def test_garbage_is_an_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_report(payload)
    with pytest.raises(WireError):
        decode_registration(payload)


@pytest.mark.parametrize("payload", [b'{"instance":"\xff"}', b"{}", b"null", b"[]", b""])
def test_bad_registrations(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_registration(payload)
