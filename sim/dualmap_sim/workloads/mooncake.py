"""The trace format that Mooncake published: arrival, lengths and one id per 512-token prompt block.

Equal leading ids mean an equal prompt prefix; the last block may be partial.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from dualmap_sim.workloads.errors import TraceError, WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS, Span

TRACE_BUCKET_S = 3.0


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class TraceReading:
    """How a trace becomes requests.

    `bucket_s` is the grain of its timestamps (0 keeps them as they are); `rate_req_s` replays it at another
    mean rate; `salt` gives the same structure over other text, for a fleet that must start cold.
    """

    bucket_s: float = TRACE_BUCKET_S
    count: int | None = None
    duration_s: float | None = None
    rate_req_s: float | None = None
    as_chat: bool = False
    salt: str = ""

    def __post_init__(self) -> None:
        if self.rate_req_s is not None and not self.rate_req_s > 0:
            raise WorkloadError(f"rate must be above 0 requests/s, not {self.rate_req_s}")


def read_mooncake(path: Path, reading: TraceReading | None = None) -> list[TimedRequest]:
    """Read a trace file into requests in order of arrival; raises TraceError at the first bad line."""
    reading = reading or TraceReading()
    lines = sorted(_read_lines(path), key=lambda line: line.timestamp)[: reading.count]
    arrivals = spread_buckets([line.timestamp / 1000 for line in lines], reading.bucket_s)
    scale = 1.0
    if reading.rate_req_s is not None and lines and arrivals[-1] > 0:
        scale = len(lines) / arrivals[-1] / reading.rate_req_s
    keys: dict[int, str] = {}
    requests: list[TimedRequest] = []
    for index, (line, arrival_s) in enumerate(zip(lines, arrivals, strict=True)):
        if reading.duration_s is not None and arrival_s * scale > reading.duration_s:
            break
        spans = tuple(_spans(line, keys, reading.salt))
        requests.append(
            TimedRequest(
                at_s=arrival_s * scale,
                request_id=f"trace-{index}",
                output_tokens=line.output_length,
                messages=(Message("user", spans),) if reading.as_chat else (),
                prompt=() if reading.as_chat else spans,
            )
        )
    return requests


def spread_buckets(times_s: Sequence[float], bucket_s: float) -> list[float]:
    """Spread the times of each bucket evenly over it, in order; 0 leaves them.

    A bucket's stamp may be off by a millisecond, hence the rounding.
    """
    if bucket_s <= 0:
        return list(times_s)
    spread: list[float] = []
    for bucket, group in groupby(times_s, key=lambda time_s: round(time_s / bucket_s)):
        count = len(list(group))
        spread += [(bucket + place / count) * bucket_s for place in range(count)]
    return spread


def _spans(line: _Line, keys: dict[int, str], salt: str) -> Iterator[Span]:
    left = line.input_length
    for block in line.hash_ids:
        key = keys.get(block)
        if key is None:
            key = keys[block] = f"trace.{salt}.{block}"
        yield Span(key, min(BLOCK_TOKENS, left))
        left -= BLOCK_TOKENS


def _read_lines(path: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _parse(decoder, raw, f"{path}:{number}")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


def _parse(decoder: msgspec.json.Decoder[_Line], raw: bytes, where: str) -> _Line:
    try:
        line = decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(f"{where}: {error}") from error
    if line.timestamp < 0 or line.input_length < 1 or line.output_length < 1:
        raise TraceError(f"{where}: timestamp must not be negative, lengths must be 1 or more")
    blocks = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) != blocks:
        raise TraceError(
            f"{where}: {line.input_length} input tokens make {blocks} blocks of {BLOCK_TOKENS}, "
            f"but hash_ids has {len(line.hash_ids)}"
        )
    return line
