from dataclasses import replace

import pytest

from dualmap_sim.workloads import Bursts, Traffic, WorkloadError, make_workload
from dualmap_sim.workloads.arrival import Arrival, to_arrivals
from dualmap_sim.workloads.describe import PoolSize, describe, hottest, prefill_s


def arrival(at_s: float, tokens: int, *chunks: int) -> Arrival:
    return Arrival(at_s, f"{at_s}", tokens, 10, chunks)


def test_figures_of_a_handful_of_requests() -> None:
    requests = [
        arrival(0.25, 1024, 1, 2),
        arrival(1, 1100, 1, 2),
        arrival(2, 600, 9),
        arrival(4.25, 1024, 1, 2),
    ]
    found = describe(requests, PoolSize(instances=2, kv_blocks=2))
    assert (found.requests, found.duration_s, found.rate_req_s) == (4, 4.0, 1.0)
    assert found.input_tokens.mean == (1024 + 1100 + 600 + 1024) / 4
    assert (found.input_tokens.p50, found.input_tokens.p90) == (1024, 1100)
    # Of 2 + 3 + 2 + 2 blocks; a pool of 4 holds the two chunks beside the third, an instance of 2 does not.
    assert found.ideal.block_share == found.pool_cache.block_share == 4 / 9
    assert found.instance_cache.block_share == 3 / 9
    assert found.half_shared_request_share == 2 / 4
    assert found.cold.bound_req_s == pytest.approx(2 / found.cold.prefill_s)
    assert [prefix.share for prefix in found.hot] == [0.75, 0.75, 0, 0]
    assert found.reuse_requests is not None
    assert found.reuse_requests.mean == 1.5


def test_the_serial_model_and_the_last_token() -> None:
    cold = 0.015 + 90e-6 * 2048 + 2.7e-9 * 2048 * 1024
    assert prefill_s(arrival(0, 2048), 0) == pytest.approx(cold)
    assert prefill_s(arrival(0, 512), 1) == pytest.approx(0.015 + 90e-6 + 2.7e-9 * 511.5)


def test_late_requests_and_their_own_objectives() -> None:
    requests = [arrival(0.5, 100_000), arrival(1, 512), replace(arrival(2, 5120), slo_s=0.1)]
    late = describe(requests, PoolSize()).late
    assert late.request_share == 2 / 3
    assert 0.9 < late.work_share < 1
    assert late.request_share_cached == 2 / 3


def test_coarse_stamps_are_spread_before_they_are_counted() -> None:
    coarse = describe([arrival(3.0 * (place // 9), 10) for place in range(90)], PoolSize())
    assert (coarse.grain_s, coarse.gap_variation) == (3.0, None)
    assert coarse.peak_to_mean < 1.1
    bursts = Traffic(5, count=5000, pattern=Bursts(peak=4))
    bursty = describe(to_arrivals(make_workload("unique", bursts)), PoolSize())
    steady = describe(to_arrivals(make_workload("unique", Traffic(5, count=5000))), PoolSize())
    assert bursty.gap_variation is not None
    assert steady.gap_variation == pytest.approx(1, abs=0.1)
    assert bursty.gap_variation > 3
    assert bursty.peak_to_mean > 3 > 2 > steady.peak_to_mean > 1


def test_a_prefix_is_hot_over_two_nths() -> None:
    requests = [arrival(place, 600, place % 4) for place in range(16)]
    assert hottest(requests, 1, 0.25).over_bound is False
    assert hottest(requests, 1, 0.2).num_over_bound == 4


def test_nothing_and_one() -> None:
    with pytest.raises(WorkloadError, match="no request"):
        describe([], PoolSize())
    with pytest.raises(WorkloadError, match="1 or more"):
        PoolSize(instances=0)
    one = describe([arrival(1.5, 7)], PoolSize())
    assert (one.duration_s, one.rate_req_s, one.gap_variation, one.peak_to_mean) == (0, 0, 0, 1)
    assert one.reuse_blocks is None
