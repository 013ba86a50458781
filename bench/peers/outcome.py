"""What a run comes to, and whether to believe it."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

import msgspec

from dualmap_cli.load import RequestRecord
from dualmap_cli.load.percentiles import percentile

LAG_LIMIT_S = 0.1
"""Model seconds, 2 % of the SLO: a client that sends later than that measures itself."""
ENGINE_LAG_LIMIT_S = 0.5
"""Model seconds by which an engine's step may end late at worst: more, and engines were slower than they say."""
BUSY_LIMIT = 0.92


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run; seconds are model seconds, shares are of all requests that were sent."""

    subject: str
    workload: str
    rate_req_s: float
    time_scale: float
    routers: int
    requests: int
    errors: dict[str, int]
    within_slo_share: float
    ttft_s: list[float | None]
    """p50, p90 and p99; None where the run ended before so many were answered."""
    cached_share: float
    """Of the prompt tokens: not computed by any engine."""
    load_cv: float
    """Of the engines' prefill tokens: standard deviation over mean."""
    load_max: float
    """The most loaded engine's over the mean."""
    router_cpu_ms: float
    """A request's, in all routers together."""
    lag_p99_s: float
    busy_share: float
    """Of all cores, by whatever runs here."""
    own_share: float
    """Of all cores, by this run and its client."""
    engine_lag_s: float = 0.0
    """The latest end of a step of any engine."""
    moves: int = 0
    escapes: int = 0
    asked_again: int = 0
    """Requests that the client had to send to another router."""
    changes: bool = False
    wall_s: float = 0.0

    @property
    def doubt(self) -> str | None:
        """Why the machine may have been measured instead."""
        if self.lag_p99_s > LAG_LIMIT_S:
            return f"client late by {self.lag_p99_s * 1e3:.0f} ms (p99)"
        if self.engine_lag_s > ENGINE_LAG_LIMIT_S:
            return f"engines late by {self.engine_lag_s:.1f} s"
        if self.busy_share > BUSY_LIMIT:
            return f"cores {self.busy_share:.0%} busy"
        return None


def ttft_percentiles(records: Sequence[RequestRecord]) -> list[float | None]:
    """p50, p90, p99 over all that was sent: what was never answered took longer than all else."""
    known = sorted(math.inf if one.ttft_s is None or one.error else one.ttft_s for one in records)
    values = [percentile(known, share) for share in (0.5, 0.9, 0.99)]
    return [None if value is None or math.isinf(value) else value for value in values]


def within_share(records: Sequence[RequestRecord]) -> float:
    """Whose first token came in time and who was not failed later."""
    good = sum(one.error is None and one.ttft_s is not None and one.ttft_s <= one.slo_s for one in records)
    return good / max(len(records), 1)


def spread(loads: Sequence[float]) -> tuple[float, float]:
    """How uneven engines are: standard deviation and maximum, both over the mean."""
    mean = fmean(loads)
    return (pstdev(loads) / mean, max(loads) / mean) if mean else (0.0, 1.0)


def cached_share(prompt_tokens: int, prefill_tokens: int) -> float:
    """What no engine had to compute; what was computed twice counts against it."""
    return 1.0 - prefill_tokens / prompt_tokens if prompt_tokens else 0.0
