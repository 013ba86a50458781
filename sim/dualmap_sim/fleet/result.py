"""What a run shows: TTFT, attainment, hits, balance and what the rules did."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from dualmap_sim.fleet.flight import Flight


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds."""

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
class RunResult:
    """One run in numbers; shares are 0 to 1."""

    num_requests: int
    rate_req_s: float
    ttft_s: Percentiles
    within_slo_share: float
    hit_share: float
    """Prompt tokens that a request's first run found cached."""
    load_cv: float
    """Standard deviation over mean of the instances' prefill seconds."""
    moves: int
    escapes: int
    preemptions: int


def summarize(flights: Sequence[Flight], busy_s: Sequence[float]) -> RunResult:
    """A run's result from its requests and the seconds that each instance prefilled."""
    num = max(len(flights), 1)
    span_s = flights[-1].arrival.at_s - flights[0].arrival.at_s if len(flights) > 1 else 0.0
    ttfts = [flight.ttft_s for flight in flights if flight.ttft_s is not None]
    prompt_tokens = sum(flight.arrival.input_tokens for flight in flights)
    mean_s = fmean(busy_s) if busy_s else 0.0
    return RunResult(
        num_requests=len(flights),
        rate_req_s=len(flights) / span_s if span_s > 0 else 0.0,
        ttft_s=Percentiles.of(ttfts),
        within_slo_share=sum(flight.within_slo for flight in flights) / num,
        hit_share=sum(flight.cached_tokens for flight in flights) / max(prompt_tokens, 1),
        load_cv=pstdev(busy_s) / mean_s if mean_s > 0 else 0.0,
        moves=sum(flight.moves for flight in flights),
        escapes=sum(flight.escaped for flight in flights),
        preemptions=sum(flight.preemptions for flight in flights),
    )
