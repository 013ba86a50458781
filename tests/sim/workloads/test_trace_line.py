import io

import msgspec
import pytest

from dualmap_sim.workloads import trace_line
from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.trace_line import TraceLine, bounded_lines, checked, num_blocks, parse_trace_line


def test_fields_that_are_not_set_are_not_written() -> None:
    line = TraceLine(3, 600, 5, [1, 2], tenant="t")
    raw = msgspec.json.encode(line)
    assert raw == b'{"timestamp":3,"input_length":600,"output_length":5,"hash_ids":[1,2],"tenant":"t"}'
    assert parse_trace_line(raw) == line


def test_blocks_are_counted_to_the_last_partial_one() -> None:
    assert [num_blocks(tokens) for tokens in (1, 512, 513)] == [1, 1, 2]
    with pytest.raises(LineError, match="finite"):
        checked(TraceLine(float("inf"), 1, 1, [0]))


def test_lines_are_bounded_and_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_line, "MAX_LINE_BYTES", 8)
    text = b"one\n\n" + b"x" * 30 + b"\ntwo\n12345678\n" + b"y" * 9
    assert list(bounded_lines(io.BytesIO(text))) == [
        (1, b"one\n"),
        (3, None),
        (4, b"two\n"),
        (5, b"12345678\n"),
        (6, None),
    ]
