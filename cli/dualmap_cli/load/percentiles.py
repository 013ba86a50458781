"""Nearest-rank percentiles."""

import math
from collections.abc import Iterable, Sequence

import msgspec


class Percentiles(msgspec.Struct, frozen=True):
    """The middle, the tail and the far tail; None when nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the ordered values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def percentiles(values: Iterable[float | None]) -> Percentiles:
    """Percentiles of the values that are not None."""
    ordered = sorted(value for value in values if value is not None)
    return Percentiles(percentile(ordered, 0.5), percentile(ordered, 0.9), percentile(ordered, 0.99))
