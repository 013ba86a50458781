"""The trace form of this project: one JSON object per request and line.

It is what Mooncake published, arrival, lengths and one id per 512-token prompt block, plus fields that may be
left out: tenant, session, adapter and the request's own TTFT objective. Equal leading ids mean an equal prompt
prefix; the last block may be partial.
"""

import math
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.text import BLOCK_TOKENS

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_TOKENS = 16 * 1024 * 1024
"""More than any model takes; a larger number is an error of the trace, and would cost its reader the memory."""


class TraceLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request of a trace; `timestamp` is milliseconds."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    tenant: str | None = None
    session: str | None = None
    adapter: str | None = None
    slo_s: float | None = None


_decoder = msgspec.json.Decoder(TraceLine)


def parse_trace_line(raw: bytes) -> TraceLine:
    """Read one line; LineError says what is wrong with it."""
    try:
        line = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LineError(str(error)) from error
    if line.timestamp < 0:
        raise LineError("timestamp must not be negative")
    return checked(line)


def checked(line: TraceLine) -> TraceLine:
    """The same line; LineError when a number is out of bounds or ids are missing."""
    if not math.isfinite(line.timestamp):
        raise LineError("timestamp must be finite")
    if not (1 <= line.input_length <= MAX_TOKENS and 1 <= line.output_length <= MAX_TOKENS):
        raise LineError(f"lengths must be 1 or more, and at most {MAX_TOKENS}")
    if line.slo_s is not None and not (math.isfinite(line.slo_s) and line.slo_s > 0):
        raise LineError(f"slo_s must be above 0, not {line.slo_s}")
    blocks = num_blocks(line.input_length)
    if len(line.hash_ids) != blocks:
        raise LineError(
            f"{line.input_length} input tokens make {blocks} blocks of {BLOCK_TOKENS}, "
            f"but hash_ids has {len(line.hash_ids)}"
        )
    return line


def num_blocks(tokens: int) -> int:
    """Blocks of a prompt, the last one perhaps partial."""
    return -(-tokens // BLOCK_TOKENS)


def bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of the lines that are not blank; None for one over `MAX_LINE_BYTES`."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif raw.strip():
            yield number, raw
