"""What a run shows: TTFT, attainment under both forms of SLO, slowdown, hits, balance and what the rules did."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, pstdev

from dualmap.ttft import DEFAULT_SPEED
from dualmap.types import Slo
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.engines import cold_prefill_s
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.workloads.arrival import Arrival

FIXED_SLO = Slo(5.0)
SCALED_SLO = Slo(2.0, 0.5)
"""What a run is held against beside its own SLO: one objective for all, and one that grows with the prompt."""
LENGTH_CLASSES = (
    ("under 2k", 0, 2_000),
    ("2k to 8k", 2_000, 8_000),
    ("8k to 32k", 8_000, 32_000),
    ("over 32k", 32_000, sys.maxsize),
)
"""Classes of prompts: from so many tokens, to under so many."""
_MOST_TENANTS = 20
_CURVE_POINTS = 200


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds, or for slowdowns a factor."""

    p50: float
    p90: float
    p99: float
    p999: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        """Nearest-rank percentiles; zeros for nothing."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        ranked = sorted(values)
        return cls(
            *(ranked[min(int(share * len(ranked)), len(ranked) - 1)] for share in (0.5, 0.9, 0.99, 0.999))
        )


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Some of a run's requests: a class of lengths, or a tenant."""

    name: str
    num_requests: int
    within_slo_share: float
    slowdown: Percentiles


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run in numbers; shares are 0 to 1. A request without a first token misses every objective."""

    num_requests: int
    rate_req_s: float
    ttft_s: Percentiles
    within_slo_share: float
    within_fixed_share: float
    within_scaled_share: float
    """Under an SLO that is the same for all, and one that grows with the prompt: the run's own where it is such."""
    goodput_req_s: float
    """Requests/s within the run's SLO."""
    hit_share: float
    """Prompt tokens that a request's first run found cached."""
    ideal_hit_share: float
    """... and that one infinite cache would have held."""
    load_cv: float
    """Standard deviation over mean of the instances' prefill seconds."""
    moves: int
    escapes: int
    preemptions: int
    unserved: int
    """Requests that never saw a first token, refused ones among them."""
    slowdown: Percentiles
    """TTFT over the request's own cold prefill time alone."""
    by_length: tuple[GroupResult, ...]
    by_tenant: tuple[GroupResult, ...]
    """The largest ones; empty unless there are several."""
    busy_s: tuple[float, ...]
    """Prefill seconds by instance."""
    ttft_curve_s: tuple[float, ...]
    """TTFT at evenly spaced shares of the requests that saw a first token."""


def _default_cold_s(prompt_tokens: int) -> float:
    return DEFAULT_SPEED.prefill_s(prompt_tokens, 0)


@dataclass(frozen=True, slots=True)
class Measures:
    """What a run's requests are held against."""

    fixed: Slo = FIXED_SLO
    scaled: Slo = SCALED_SLO
    cold_s: Callable[[int], float] = _default_cold_s
    """Seconds that a prompt of so many tokens takes alone."""

    @classmethod
    def of(cls, setup: FleetSetup) -> "Measures":
        """Those of a fleet: its own SLO stands for the one of its form."""
        fixed, scaled = (FIXED_SLO, setup.slo) if setup.slo.per_1k_tokens_s else (setup.slo, SCALED_SLO)
        return cls(fixed, scaled, partial(cold_prefill_s, setup))


def summarize(
    flights: Sequence[Flight], busy_s: Sequence[float], measures: Measures = Measures()
) -> RunResult:
    """A run's result from its requests and the seconds that each instance prefilled."""
    num = max(len(flights), 1)
    span_s = flights[-1].arrival.at_s - flights[0].arrival.at_s if len(flights) > 1 else 0.0
    ttfts = sorted(flight.ttft_s for flight in flights if flight.ttft_s is not None)
    prompt_tokens = max(sum(flight.arrival.input_tokens for flight in flights), 1)
    mean_s = fmean(busy_s) if busy_s else 0.0
    within = sum(flight.within_slo for flight in flights)
    return RunResult(
        num_requests=len(flights),
        rate_req_s=len(flights) / span_s if span_s > 0 else 0.0,
        ttft_s=Percentiles.of(ttfts),
        within_slo_share=within / num,
        within_fixed_share=_within(flights, measures.fixed) / num,
        within_scaled_share=_within(flights, measures.scaled) / num,
        goodput_req_s=within / span_s if span_s > 0 else 0.0,
        hit_share=sum(flight.cached_tokens for flight in flights) / prompt_tokens,
        ideal_hit_share=sum(ideal_hits(flight.arrival for flight in flights)) / prompt_tokens,
        load_cv=pstdev(busy_s) / mean_s if mean_s > 0 else 0.0,
        moves=sum(flight.moves for flight in flights),
        escapes=sum(flight.escaped for flight in flights),
        preemptions=sum(flight.preemptions for flight in flights),
        unserved=len(flights) - len(ttfts),
        slowdown=_slowdown(flights, measures),
        by_length=tuple(
            _group(name, [f for f in flights if least <= f.arrival.input_tokens < most], measures)
            for name, least, most in LENGTH_CLASSES
        ),
        by_tenant=_by_tenant(flights, measures),
        busy_s=tuple(busy_s),
        ttft_curve_s=tuple(
            ttfts[min(point * len(ttfts) // _CURVE_POINTS, len(ttfts) - 1)]
            for point in range(_CURVE_POINTS + 1)
            if ttfts
        ),
    )


def _within(flights: Sequence[Flight], slo: Slo) -> int:
    return sum(
        flight.ttft_s is not None and flight.ttft_s <= slo.for_prompt(flight.arrival.input_tokens)
        for flight in flights
    )


def _slowdown(flights: Sequence[Flight], measures: Measures) -> Percentiles:
    return Percentiles.of(
        [f.ttft_s / measures.cold_s(f.arrival.input_tokens) for f in flights if f.ttft_s is not None]
    )


def _group(name: str, flights: Sequence[Flight], measures: Measures) -> GroupResult:
    share = sum(flight.within_slo for flight in flights) / max(len(flights), 1)
    return GroupResult(name, len(flights), share, _slowdown(flights, measures))


def _by_tenant(flights: Sequence[Flight], measures: Measures) -> tuple[GroupResult, ...]:
    groups: dict[str, list[Flight]] = {}
    for flight in flights:
        groups.setdefault(flight.arrival.tenant, []).append(flight)
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:_MOST_TENANTS]
    return tuple(_group(*group, measures) for group in largest if len(groups) > 1)


def ideal_hits(arrivals: Iterable[Arrival]) -> list[int]:
    """Of each prompt the tokens that came before; the last token of a prompt is always computed."""
    seen: set[int] = set()
    tokens: list[int] = []
    for arrival in arrivals:
        chunks = arrival.chunks
        hits = next((place for place, chunk in enumerate(chunks) if chunk not in seen), len(chunks))
        tokens.append(min(hits, (arrival.input_tokens - 1) // CHUNK_TOKENS) * CHUNK_TOKENS)
        seen.update(chunks[hits:])
    return tokens
