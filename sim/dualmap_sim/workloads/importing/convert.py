"""From a log to a trace: find the format, read line by line, name what is bad, write what is good."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from dualmap_sim.workloads.errors import LineError, TraceError, WorkloadError
from dualmap_sim.workloads.importing.burstgpt import BurstGpt
from dualmap_sim.workloads.importing.openai_log import OpenAiLog
from dualmap_sim.workloads.importing.salted import Salted
from dualmap_sim.workloads.importing.writer import TraceWriter
from dualmap_sim.workloads.text import BYTES_PER_TOKEN
from dualmap_sim.workloads.trace_line import (
    MAX_LINE_BYTES,
    TraceLine,
    bounded_lines,
    checked,
    parse_trace_line,
)

FORMATS = ("mooncake", "openai", "burstgpt")
_MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a log is read. `salt` hides what ids stand for: keep it to import more of the same log later."""

    salt: str
    format: str | None = None
    """None finds it in the first line."""
    skip_bad: bool = False
    bytes_per_token: float = float(BYTES_PER_TOKEN)
    keep_names: bool = False
    """Tenants and sessions as the log has them; otherwise pseudonyms."""
    models: tuple[str, ...] = ()
    """Only requests for these; none given takes all."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise WorkloadError(f"no format is called {self.format!r}; there are {', '.join(FORMATS)}")
        if not (math.isfinite(self.bytes_per_token) and 0.5 <= self.bytes_per_token <= 64):
            raise WorkloadError(f"bytes per token must be 0.5 to 64, not {self.bytes_per_token}")


class ImportReport(msgspec.Struct, frozen=True):
    """What came of an import."""

    format: str
    requests: int
    duration_s: float
    bad_lines: int
    bad_examples: list[str]
    guessed_outputs: int
    """Requests whose answer the log does not measure."""
    bytes_per_token: float | None
    """As measured where the log has token counts."""
    models: dict[str, int]


class _Parser(Protocol):
    def parse(self, raw: bytes) -> TraceLine | None:
        """A request, None for a line that is none, or LineError."""


class _Mooncake:
    def parse(self, raw: bytes) -> TraceLine:
        return parse_trace_line(raw)


def import_trace(source: Path, out: Path, options: ImportOptions) -> ImportReport:
    """Read a log and write it as a trace; TraceError names the first bad line unless bad ones are skipped."""
    try:
        if out.exists() and out.samefile(source):
            raise TraceError(f"{out}: would be written over the log that it is made from")
        with source.open("rb") as file:
            return _import(_named_lines(source, bounded_lines(file)), source, out, options)
    except OSError as error:
        raise TraceError(f"{error.filename or source}: {error.strerror}") from error


def _import(
    lines: Iterator[tuple[str, bytes | None]], source: Path, out: Path, options: ImportOptions
) -> ImportReport:
    parser: _Parser | None = None
    found = options.format or ""
    bad: list[str] = []
    num_bad = 0
    with TraceWriter(out) as writer:
        for where, raw in lines:
            try:
                if raw is None:
                    raise LineError(f"longer than {MAX_LINE_BYTES} bytes")
                if parser is None:
                    found = found or find_format(raw)
                    parser = _parser(found, options)
                line = parser.parse(raw)
                if line is not None:
                    writer.write(checked(line))
            except LineError as error:
                if not options.skip_bad or parser is None:
                    raise TraceError(f"{where}: {error}") from error
                num_bad += 1
                if num_bad <= _MAX_EXAMPLES:
                    bad.append(f"{where}: {error}")
        if not writer.requests:
            raise TraceError(f"{source}: no request in it{f'; {bad[0]}' if bad else ''}")
    log = parser if isinstance(parser, OpenAiLog) else None
    return ImportReport(
        format=found,
        requests=writer.requests,
        duration_s=writer.duration_s,
        bad_lines=num_bad,
        bad_examples=bad,
        guessed_outputs=log.guessed_outputs if log else 0,
        bytes_per_token=log.known_bytes / log.known_tokens if log and log.known_tokens else None,
        models=dict(log.models.most_common()) if log else {},
    )


def find_format(first: bytes) -> str:
    """The format of a log from its first line; LineError when it is none that is known."""
    text = first.decode("utf-8", "replace").lstrip("\ufeff \t").lower()
    if text.startswith("{"):
        return "mooncake" if '"hash_ids"' in text else "openai"
    if "timestamp" in text and "," in text:
        return "burstgpt"
    raise LineError(f"neither JSON nor a CSV header with a timestamp; say which format: {', '.join(FORMATS)}")


def _parser(name: str, options: ImportOptions) -> _Parser:
    salted = Salted(options.salt)
    if name == "openai":
        return OpenAiLog(salted, options.bytes_per_token, options.keep_names, options.models)
    if name == "burstgpt":
        return BurstGpt(salted, options.keep_names, options.models)
    return _Mooncake()


def _named_lines(
    source: Path, lines: Iterator[tuple[int, bytes | None]]
) -> Iterator[tuple[str, bytes | None]]:
    for number, raw in lines:
        yield f"{source}:{number}", raw
