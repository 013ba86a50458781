"""Traces as requests: files in the form of `trace_line`, which Mooncake's published traces have too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dualmap_sim.workloads.errors import LineError, TraceError, WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS, Span
from dualmap_sim.workloads.trace_line import MAX_LINE_BYTES, TraceLine, bounded_lines, parse_trace_line

_GRAINS_S = (3.0, 1.0)
"""Mooncake's traces come in 3 s buckets, many logs in whole seconds."""
_GRAIN_ERROR_S = 0.005
"""A bucket's stamp may be off by a few milliseconds."""


@dataclass(frozen=True, slots=True)
class TraceReading:
    """How a trace becomes requests.

    `bucket_s` is the grain of its timestamps (0 keeps them as they are, None finds it); `rate_req_s` replays it
    at another mean rate; `salt` gives the same structure over other text, for a fleet that must start cold.
    """

    bucket_s: float | None = None
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
    times_s = [line.timestamp / 1000 for line in lines]
    bucket_s = grain_s(times_s) if reading.bucket_s is None else reading.bucket_s
    arrivals = spread_buckets(times_s, bucket_s)
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
                session=line.session,
                tenant=line.tenant,
                adapter=line.adapter,
                slo_ttft_s=line.slo_s,
            )
        )
    return requests


def grain_s(times_s: Sequence[float]) -> float:
    """The grain of a trace's timestamps: 3 s, 1 s, or 0 for finer ones, which stay as they are."""
    for grain in _GRAINS_S:
        if all(abs(time_s - round(time_s / grain) * grain) <= _GRAIN_ERROR_S for time_s in times_s):
            return grain
    return 0.0


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


def _spans(line: TraceLine, keys: dict[int, str], salt: str) -> Iterator[Span]:
    left = line.input_length
    for block in line.hash_ids:
        key = keys.get(block)
        if key is None:
            key = keys[block] = f"trace.{salt}.{block}"
        yield Span(key, min(BLOCK_TOKENS, left))
        left -= BLOCK_TOKENS


def _read_lines(path: Path) -> Iterator[TraceLine]:
    try:
        with path.open("rb") as file:
            for number, raw in bounded_lines(file):
                if raw is None:
                    raise TraceError(f"{path}:{number}: longer than {MAX_LINE_BYTES} bytes")
                try:
                    yield parse_trace_line(raw)
                except LineError as error:
                    raise TraceError(f"{path}:{number}: {error}") from error
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
