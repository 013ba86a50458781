import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.workloads import TraceError, TraceReading, WorkloadError, ideal_hit_share, read_mooncake
from dualmap_sim.workloads.arrival import to_arrivals
from dualmap_sim.workloads.mooncake import grain_s, spread_buckets

BLOCK_BYTES = 2048


def line(timestamp: float, input_length: int, hash_ids: list[int], output_length: int = 5) -> str:
    return json.dumps(
        {
            "timestamp": timestamp,
            "input_length": input_length,
            "output_length": output_length,
            "hash_ids": hash_ids,
        }
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "\n".join(
            [
                line(0, 1100, [0, 1, 2]),
                line(0, 1536, [0, 1, 3]),
                line(2999, 512, [0]),
                "",
                line(6000, 600, [9, 1]),
            ]
        )
    )
    return path


def test_equal_leading_ids_give_equal_aligned_blocks(trace: Path) -> None:
    requests = read_mooncake(trace)
    blocks = []
    for request in requests:
        prompt = json.loads(request.body("m"))["prompt"].encode()
        assert len(prompt) == request.input_tokens * 4
        blocks.append([prompt[at : at + BLOCK_BYTES] for at in range(0, len(prompt), BLOCK_BYTES)])
    assert [request.input_tokens for request in requests] == [1100, 1536, 512, 600]
    assert [request.output_tokens for request in requests] == [5] * 4
    assert blocks[0][:2] == blocks[1][:2]
    assert blocks[0][0] == blocks[2][0]
    assert blocks[0][1].startswith(blocks[3][1])
    assert len({blocks[0][0], blocks[0][1], blocks[1][2], blocks[3][0]}) == 4
    assert ideal_hit_share(requests) == 3 / 9


def test_buckets_are_spread_evenly(trace: Path) -> None:
    assert [request.at_s for request in read_mooncake(trace)] == [0, 1.5, 3, 6]
    raw = read_mooncake(trace, TraceReading(bucket_s=0))
    assert [request.at_s for request in raw] == [0, 0, 2.999, 6]


def test_the_grain_is_found_and_finer_stamps_stay(tmp_path: Path) -> None:
    assert grain_s([0, 3, 5.999, 6]) == 3
    assert grain_s([0, 1, 1, 7.001]) == 1
    assert grain_s([0, 0.25, 3]) == 0
    path = tmp_path / "fine.jsonl"
    path.write_text("\n".join(line(at, 5, [1]) for at in (0, 250, 3100)))
    assert [request.at_s for request in read_mooncake(path)] == [0, 0.25, 3.1]


def test_optional_fields_are_read_and_an_adapter_s_cache_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "named.jsonl"
    plain = json.loads(line(0, 1024, [1, 2]))
    named = {"tenant": "t", "session": "s", "adapter": "a", "slo_s": 2.5}
    path.write_text(f"{json.dumps(plain)}\n{json.dumps(plain | named)}\n")
    _, request = read_mooncake(path)
    assert (request.tenant, request.session, request.adapter) == ("t", "s", "a")
    assert request.slo_ttft_s == 2.5
    one, other = to_arrivals(read_mooncake(path))
    assert (other.tenant, other.adapter, other.slo_s) == ("t", "a", 2.5)
    assert len(one.chunks) == len(other.chunks) == 2
    assert not {*one.chunks} & {*other.chunks}


@given(st.lists(st.integers(0, 40).map(lambda bucket: bucket * 3.0), max_size=60).map(sorted))
def test_spreading_keeps_the_order_and_the_bucket(times: list[float]) -> None:
    spread = spread_buckets(times, 3.0)
    assert spread == sorted(spread)
    assert all(time <= placed < time + 3 for time, placed in zip(times, spread, strict=True))
    assert len(set(spread)) == len(spread)


def test_a_reading_selects_and_rescales(trace: Path) -> None:
    assert len(read_mooncake(trace, TraceReading(count=2))) == 2
    assert len(read_mooncake(trace, TraceReading(duration_s=3))) == 3
    faster = read_mooncake(trace, TraceReading(rate_req_s=4 / 3))
    assert [request.at_s for request in faster] == [0, 0.75, 1.5, 3]
    chat = read_mooncake(trace, TraceReading(as_chat=True))[0]
    assert [message["role"] for message in json.loads(chat.body("m"))["messages"]] == ["user"]
    salted = read_mooncake(trace, TraceReading(salt="cold"))
    assert not {r.body("m") for r in salted} & {r.body("m") for r in read_mooncake(trace)}
    with pytest.raises(WorkloadError, match="rate must be above 0"):
        TraceReading(rate_req_s=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"timestamp": 0}', "missing required field"),
        (line(0, 513, [1]), "513 input tokens make 2 blocks of 512, but hash_ids has 1"),
        (line(0, 0, []), "1 or more"),
        (line(-1, 5, [1]), "must not be negative"),
        (line(0, 5, [1], output_length=0), "1 or more"),
        ('{"timestamp": 0, "input_length": "5", "output_length": 1, "hash_ids": [1]}', "Expected `int`"),
        (line(0, 2**40, [1]), "at most 16777216"),
        (line(1e300, 5, [1])[:-1] + ', "slo_s": 0}', "slo_s must be above 0"),
        (line(0, 5, [1])[:-1] + ', "tenant": 7}', "Expected `str | null`"),
        ('{"x": ' + "[" * 100_000, "malformed|recursion|truncated"),
        ("\x00\x01", "malformed"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{line(0, 5, [1])}\n\n{bad}\n")
    with pytest.raises(TraceError, match=message) as raised:
        read_mooncake(path)
    assert str(raised.value).startswith(f"{path}:3: ")


def test_a_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_mooncake(tmp_path / "nothing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert read_mooncake(empty) == []
