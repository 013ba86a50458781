"""What either side shows of a run, in the same terms."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from dualmap_cli.load.percentiles import percentiles


@dataclass(frozen=True, slots=True)
class Seen:
    """One request's outcome; seconds are model seconds."""

    ttft_s: float
    input_tokens: int
    cached_tokens: int
    """Found by its last run in the engine, as its usage says."""
    instance: str
    moved: bool
    escaped: bool


class Measures(msgspec.Struct, frozen=True):
    """What is compared, and counts that explain it."""

    ttft_p50_s: float
    ttft_p90_s: float
    within_slo_share: float
    hit_share: float
    moves: int
    escapes: int


COMPARED = ("ttft_p50_s", "ttft_p90_s", "within_slo_share", "hit_share")


def measure(seen: Sequence[Seen], slo_s: float) -> Measures:
    """A run in numbers."""
    ttft_s = percentiles(one.ttft_s for one in seen)
    assert ttft_s.p50 is not None
    assert ttft_s.p90 is not None
    return Measures(
        ttft_p50_s=ttft_s.p50,
        ttft_p90_s=ttft_s.p90,
        within_slo_share=sum(one.ttft_s <= slo_s for one in seen) / len(seen),
        hit_share=sum(one.cached_tokens for one in seen) / sum(one.input_tokens for one in seen),
        moves=sum(one.moved for one in seen),
        escapes=sum(one.escaped for one in seen),
    )
