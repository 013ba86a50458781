"""The workload `agents` has the statistics that are published of Mooncake's tool-and-agent trace."""

from collections import Counter
from collections.abc import Sequence

import pytest

from dualmap_sim.workloads import Traffic, make_workload
from dualmap_sim.workloads.arrival import Arrival, to_arrivals
from dualmap_sim.workloads.describe import PoolSize, describe

_HOT_SHARE = 0.0612
"""Above this share of the requests DualMap's artifact lengthens a prefix key, which begins at two chunks."""


def key_depths(arrivals: Sequence[Arrival]) -> dict[int, float]:
    """Share of the requests by the chunks in their prefix key, had the whole workload been seen before."""
    counts = Counter(chunk for arrival in arrivals for chunk in arrival.chunks[:16])
    depths: Counter[int] = Counter()
    for arrival in arrivals:
        depth = 2
        while depth < len(arrival.chunks) and counts[arrival.chunks[depth - 1]] > _HOT_SHARE * len(arrivals):
            depth += 1
        depths[depth] += 1
    return {depth: count / len(arrivals) for depth, count in depths.items()}


@pytest.mark.parametrize(("seed", "count"), [(0, 8000), (1, 8000), (2, 12_000)])
def test_agents_match_the_published_statistics(seed: int, count: int) -> None:
    arrivals = to_arrivals(make_workload("agents", Traffic(4, count=count, seed=seed)))
    found = describe(arrivals, PoolSize())
    assert found.input_tokens.mean == pytest.approx(8596, rel=0.03)
    assert found.output_tokens.mean == pytest.approx(182, rel=0.03)
    assert found.ideal.block_share == pytest.approx(0.59, abs=0.03)
    assert found.half_shared_request_share == pytest.approx(0.76, abs=0.03)
    depths = key_depths(arrivals)
    assert depths[2] == pytest.approx(0.452, abs=0.04)
    assert depths[6] == pytest.approx(0.149, abs=0.03)
    assert depths[13] == pytest.approx(0.378, abs=0.03)
    assert 30_000 < max(arrival.input_tokens for arrival in arrivals) < 131_072
    assert sum(arrival.input_tokens > 30_000 for arrival in arrivals) > 0.01 * count
