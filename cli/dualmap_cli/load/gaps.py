"""A histogram of the gaps between tokens: a few entries a request, however long the answer."""

import math
from collections.abc import Iterable, Mapping

_PER_DOUBLING = 16
_SMALLEST_S = 1e-6


def add_gap(gaps: dict[int, int], gap_s: float, count: int) -> None:
    """Count `count` gaps of this length; a bucket is 4.4 % wide."""
    bucket = round(math.log2(max(gap_s, _SMALLEST_S)) * _PER_DOUBLING)
    gaps[bucket] = gaps.get(bucket, 0) + count


def merge_gaps(many: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """All histograms in one."""
    merged: dict[int, int] = {}
    for gaps in many:
        for bucket, count in gaps.items():
            merged[bucket] = merged.get(bucket, 0) + count
    return merged


def gap_percentile(gaps: Mapping[int, int], share: float) -> float | None:
    """The gap in seconds that `share` of the gaps do not exceed; None when there are none."""
    rank = max(1, math.ceil(share * sum(gaps.values())))
    for bucket in sorted(gaps):
        rank -= gaps[bucket]
        if rank <= 0:
            return float(2 ** (bucket / _PER_DOUBLING))
    return None
