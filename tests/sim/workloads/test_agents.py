"""The workload `agents` has the statistics that are published of Mooncake's tool-and-agent trace."""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean, pstdev, quantiles

import pytest

from dualmap_sim.workloads import Traffic, make_workload
from dualmap_sim.workloads.arrival import Arrival, to_arrivals
from dualmap_sim.workloads.describe import PoolSize, describe
from dualmap_sim.workloads.text import BLOCK_TOKENS

_HOT_SHARE = 0.0612
"""Above this share of the requests DualMap's artifact lengthens a prefix key, which begins at two chunks."""


def key_depths(arrivals: Sequence[Arrival]) -> dict[int, float]:
    """Share of the requests by the chunks in their prefix key, had the whole workload been seen before."""
    counts = Counter(chunk for arrival in arrivals for chunk in arrival.chunks[:16])
    depths: Counter[int] = Counter()
    for arrival in arrivals:
        depth = 2
        # The trace has a block for the partial chunk too.
        while depth <= len(arrival.chunks) and counts[arrival.chunks[depth - 1]] > _HOT_SHARE * len(arrivals):
            depth += 1
        depths[depth] += 1
    return {depth: count / len(arrivals) for depth, count in depths.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_agents_match_the_published_statistics(seed: int) -> None:
    arrivals = to_arrivals(make_workload("agents", Traffic(6.6, count=12_000, seed=seed)))
    found = describe(arrivals, PoolSize())
    inputs = [arrival.input_tokens for arrival in arrivals]
    assert fmean(inputs) == pytest.approx(8_590, rel=0.04)
    assert pstdev(inputs) == pytest.approx(10_994, rel=0.06)
    assert quantiles(inputs, n=4) == pytest.approx([3_227, 6_345, 7_470], rel=0.13)
    assert 100_000 < max(inputs) < 131_072
    unseen = unseen_tokens(arrivals)
    assert fmean(unseen) == pytest.approx(2_834, rel=0.08)
    assert pstdev(unseen) == pytest.approx(8_561, rel=0.08)
    assert quantiles(unseen, n=4)[:2] == pytest.approx([266, 560], rel=0.13)
    outputs = [arrival.output_tokens for arrival in arrivals]
    assert fmean(outputs) == pytest.approx(182, rel=0.03)
    assert pstdev(outputs) == pytest.approx(242, rel=0.06)
    assert found.ideal.block_share == pytest.approx(0.63, abs=0.03)
    assert found.half_shared_request_share == pytest.approx(0.76, abs=0.03)
    depths = key_depths(arrivals)
    assert depths[2] == pytest.approx(0.452, abs=0.03)
    assert depths[6] == pytest.approx(0.149, abs=0.03)
    assert depths[13] == pytest.approx(0.378, abs=0.03)


def unseen_tokens(arrivals: Sequence[Arrival]) -> list[int]:
    """Of each prompt, the tokens behind the chunks that were there before."""
    seen: set[int] = set()
    unseen: list[int] = []
    for arrival in arrivals:
        known = sum(1 for _ in takewhile(seen.__contains__, arrival.chunks))
        unseen.append(arrival.input_tokens - known * BLOCK_TOKENS)
        seen.update(arrival.chunks)
    return unseen
