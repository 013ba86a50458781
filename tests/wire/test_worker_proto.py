"""Frames between routers and workers: golden bytes both ways."""

import pytest
from google.protobuf.message import DecodeError

from dualmap_wire.v1 import worker_pb2 as pb

ROUTER_FRAME = pb.RouterFrame(
    hello=pb.Hello(router="r1", pool="p"),
    submits=[
        pb.Submit(
            stream=7,
            request_id="q",
            method="POST",
            path="/v1/completions",
            headers=[pb.Header(name="a", value="b")],
            body=b"{}",
            queued=True,
            placement=pb.Placement(
                charge_id="c",
                prompt_tokens=9,
                cached_tokens=4,
                prompt_bytes=36,
                slo_s=5.0,
                age_s=0.5,
                priority=-1,
                feasible=True,
                backup="w2",
                backup_cached_tokens=2,
                moves=1,
                predicted_ttft_s=0.25,
            ),
            hide_usage=True,
        )
    ],
    cancels=[3, 300],
)
ROUTER_BYTES = bytes.fromhex(
    "0a070a027231120170126708071201711a04504f5354220f2f76312f636f6d706c6574696f6e732a060a016112016232"
    "027b7d380142390a016310091804202429000000000000144031000000000000e03f38ffffffffffffffffff0140014a"
    "0277325002580161000000000000d03f48011a0303ac02"
)
WORKER_FRAME = pb.WorkerFrame(
    events=[
        pb.Event(
            stream=7,
            head=pb.Head(status=200, headers=[pb.Header(name="a", value="b")], queued_s=0.5, prefill_s=0.25),
        ),
        pb.Event(stream=7, data=b"data: x\n\n"),
        pb.Event(stream=7, end=pb.End(prompt_tokens=9, cached_tokens=4, output_tokens=2)),
        pb.Event(stream=8, moved=pb.Moved(target="w2")),
        pb.Event(stream=9, failed=pb.Failed(kind=pb.Failed.ENGINE_LOST, message="gone", begun=True)),
    ]
)
WORKER_BYTES = bytes.fromhex(
    "0a210807121d08c80112060a016112016219000000000000e03f21000000000000d03f0a0d08071a09646174613a2078"
    "0a0a0a0a080722060809100418020a0808082a040a0277320a0e0809320a08011204676f6e652001"
)


def test_a_router_frame_is_these_bytes_both_ways() -> None:
    assert ROUTER_FRAME.SerializeToString(deterministic=True) == ROUTER_BYTES
    assert pb.RouterFrame.FromString(ROUTER_BYTES) == ROUTER_FRAME


def test_a_worker_frame_is_these_bytes_both_ways() -> None:
    assert WORKER_FRAME.SerializeToString(deterministic=True) == WORKER_BYTES
    decoded = pb.WorkerFrame.FromString(WORKER_BYTES)
    assert decoded == WORKER_FRAME
    assert [event.WhichOneof("what") for event in decoded.events] == [
        "head",
        "data",
        "end",
        "moved",
        "failed",
    ]


def test_bytes_travel_unparsed() -> None:
    body = bytes(range(256))
    frame = pb.WorkerFrame(events=[pb.Event(stream=1, data=body)])
    assert pb.WorkerFrame.FromString(frame.SerializeToString()).events[0].data == body


def test_a_cut_frame_is_an_error() -> None:
    with pytest.raises(DecodeError):
        pb.RouterFrame.FromString(ROUTER_BYTES[:-1])


def test_an_empty_chunk_is_still_an_event() -> None:
    event = pb.Event.FromString(pb.Event(stream=1, data=b"").SerializeToString())
    assert event.WhichOneof("what") == "data"


def test_frames_of_another_release_keep_what_they_do_not_know() -> None:
    # Field 99, a varint: a newer router may say more.
    newer = ROUTER_BYTES + b"\x98\x06\x01"
    assert pb.RouterFrame.FromString(newer).submits == ROUTER_FRAME.submits


def test_field_numbers_stay() -> None:
    numbers = {name: m.fields_by_name.keys() for name, m in pb.DESCRIPTOR.message_types_by_name.items()}
    assert {"RouterFrame", "WorkerFrame", "MigrateRequest", "DrainRequest"} <= numbers.keys()
    assert {s: list(d.methods_by_name) for s, d in pb.DESCRIPTOR.services_by_name.items()} == {
        "WorkerData": ["Session"],
        "WorkerControl": ["Migrate", "Drain", "Describe", "ListQueue"],
    }
