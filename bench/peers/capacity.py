"""Capacity at 90 %: from runs at some rates, between the last that holds and the first that does not."""

from collections.abc import Mapping
from itertools import pairwise

SHARE = 0.9
_CLOSE = 1.12


def capacity(within_by_rate: Mapping[float, float], share: float = SHARE) -> tuple[float | None, str]:
    """The rate at which the line through the runs falls through `share`, and what is known of it.

    "": between two runs; ">=": the highest rate still held; "<": the lowest did not hold. None without any run.
    """
    rates = sorted(within_by_rate)
    if not rates:
        return None, ""
    if within_by_rate[rates[0]] < share:
        return rates[0], "<"
    for low, high in pairwise(rates):
        above, below = within_by_rate[low], within_by_rate[high]
        if below < share:
            return low + (high - low) * (above - share) / (above - below), ""
    return rates[-1], ">="


def middle(within_by_rate: Mapping[float, float], share: float = SHARE) -> float | None:
    """Where one more run says most about the capacity; None if it is known closely already, or not enclosed.

    Below the lowest rate when not even that one held.
    """
    rates = sorted(within_by_rate)
    if not rates:
        return None
    if within_by_rate[rates[0]] < share:
        return round(rates[0] / 1.25, 2)
    for low, high in pairwise(rates):
        if within_by_rate[high] < share:
            return None if high / low <= _CLOSE else round((low * high) ** 0.5, 2)
    return None
