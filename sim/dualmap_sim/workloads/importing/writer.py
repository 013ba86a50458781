"""Writes a trace as it comes, its timestamps counted from the first arrival."""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from dualmap_sim.workloads.trace_line import TraceLine

_decoder = msgspec.json.Decoder(TraceLine)


class TraceWriter:
    """Writes beside `out` and puts the file in its place at the end, so that nobody reads half of it.

    A log is rarely in order of arrival: if a line came before the first one, a second pass moves all stamps.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._part = out.with_name(f"{out.name}.part")
        self._file: BinaryIO | None = None
        self._base_ms: float | None = None
        self._first_ms = 0
        self.last_ms = 0
        self.requests = 0

    def __enter__(self) -> Self:
        self._file = self._part.open("wb")
        return self

    def write(self, line: TraceLine) -> None:
        """Append a request; its stamp may be from any clock."""
        if self._base_ms is None:
            self._base_ms = line.timestamp
        at_ms = round(line.timestamp - self._base_ms)
        self._first_ms = min(self._first_ms, at_ms)
        self.last_ms = max(self.last_ms, at_ms)
        self.requests += 1
        assert self._file is not None
        self._file.write(msgspec.json.encode(msgspec.structs.replace(line, timestamp=at_ms)) + b"\n")

    @property
    def duration_s(self) -> float:
        """From the earliest to the latest arrival."""
        return (self.last_ms - self._first_ms) / 1000

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        try:
            if kind is None:
                if self._first_ms < 0:
                    self._shift()
                self._part.replace(self._out)
        finally:
            self._part.unlink(missing_ok=True)

    def _shift(self) -> None:
        moved = self._part.with_name(f"{self._part.name}.shift")
        try:
            with self._part.open("rb") as lines, moved.open("wb") as file:
                for raw in lines:
                    line = _decoder.decode(raw)
                    at_ms = round(line.timestamp) - self._first_ms
                    file.write(msgspec.json.encode(msgspec.structs.replace(line, timestamp=at_ms)) + b"\n")
            moved.replace(self._part)
        finally:
            moved.unlink(missing_ok=True)
