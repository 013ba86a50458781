"""What a router's metrics say: quantiles of a histogram between two scrapes, interpolated within the bucket."""

import re
from itertools import pairwise

import aiohttp

DECISION = "dualmap_decision_seconds"
"""From the body read to the frame handed to the session."""


async def scrape(url: str) -> str:
    """A service's exposition text."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        return await answer.text()


def total(text: str, name: str) -> float:
    """The value of a counter without labels."""
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def buckets(text: str, name: str) -> dict[float, float]:
    """Cumulative counts by upper bound, in order, from an exposition text."""
    found = re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)', text, re.MULTILINE)
    return {float(bound): float(count) for bound, count in found}


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float | None:
    """The value below which that share of the observations between the scrapes lies; None without any."""
    counts = [(0.0, 0.0)] + [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    rank = share * counts[-1][1]
    if not rank:
        return None
    for (low, below), (high, upto) in pairwise(counts):
        if upto >= rank:
            return low if high == float("inf") else low + (high - low) * (rank - below) / (upto - below)
    return None
