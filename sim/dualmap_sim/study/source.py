"""Where a study's requests come from: values that another process can make the same workload of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from dualmap_sim.workloads.arrival import Arrival, at_rate, reseeded, to_arrivals
from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.mooncake import TraceReading, read_mooncake
from dualmap_sim.workloads.registry import make_workload
from dualmap_sim.workloads.traffic import Traffic

DEFAULT_REQUESTS = 12_000
_JITTER_S = 1.5
"""By how much a seed shifts a trace's arrivals: half of a Mooncake bucket."""


class Source(Protocol):
    """A workload at any rate and seed."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def arrivals(self, rate_req_s: float, seed: int) -> Sequence[Arrival]:
        """Its requests at a mean rate; the same in every process."""

    def own_rate_req_s(self) -> float | None:
        """The rate that it came with, if any."""


@dataclass(frozen=True, slots=True)
class TraceSource:
    """A trace file: a rate stretches its gaps, a seed shifts its arrivals and hashes its chunks elsewhere."""

    path: str
    count: int | None = None

    @property
    def name(self) -> str:
        """The file's."""
        return Path(self.path).stem

    def arrivals(self, rate_req_s: float, seed: int) -> Sequence[Arrival]:
        """The trace at a rate."""
        return at_rate(reseeded(_read(self.path, self.count), seed, _JITTER_S), rate_req_s)

    def own_rate_req_s(self) -> float | None:
        """What it was recorded at."""
        arrivals = _read(self.path, self.count)
        span_s = arrivals[-1].at_s - arrivals[0].at_s
        return len(arrivals) / span_s if span_s > 0 else None


@dataclass(frozen=True, slots=True)
class BuiltinSource:
    """A built-in workload, made anew at each rate: think times do not shrink when more users come."""

    workload: str
    settings: tuple[tuple[str, float], ...] = ()
    count: int = DEFAULT_REQUESTS

    @property
    def name(self) -> str:
        """The workload's, with what was set."""
        return " ".join([self.workload, *(f"{name}={value:g}" for name, value in self.settings)])

    def arrivals(self, rate_req_s: float, seed: int) -> Sequence[Arrival]:
        """The workload at a rate."""
        return _made(self, rate_req_s, seed)

    def own_rate_req_s(self) -> float | None:
        """None."""
        return None


@lru_cache(maxsize=4)
def _read(path: str, count: int | None) -> list[Arrival]:
    arrivals = to_arrivals(read_mooncake(Path(path), TraceReading(count=count)))
    if not arrivals:
        raise WorkloadError(f"{path}: there is no request in it")
    return arrivals


@lru_cache(maxsize=4)
def _made(source: BuiltinSource, rate_req_s: float, seed: int) -> list[Arrival]:
    traffic = Traffic(rate_req_s, source.count, None, seed)
    return to_arrivals(make_workload(source.workload, traffic, dict(source.settings)))
