from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from dualmap_sim.workloads import PATTERNS, Bursts, Diurnal, Traffic, WorkloadError, make_workload


def variation(traffic: Traffic) -> float:
    times = list(traffic.arrivals(traffic.rng("test")))
    gaps = [after - before for before, after in pairwise(times)]
    return pstdev(gaps) / fmean(gaps)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_pattern_keeps_the_mean_rate_and_the_requests(name: str) -> None:
    traffic = Traffic(5, count=20_000, pattern=PATTERNS[name])
    times = list(traffic.arrivals(traffic.rng("test")))
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(5, rel=0.1)
    plain = make_workload("unique", Traffic(5, count=50))
    shaped = make_workload("unique", Traffic(5, count=50, pattern=PATTERNS[name]))
    assert [one.body("m") for one in shaped] == [one.body("m") for one in plain]


def test_bursts_are_bursty_and_steady_traffic_is_poisson() -> None:
    assert variation(Traffic(5, count=20_000)) == pytest.approx(1, abs=0.05)
    # Off, a third of the mean rate; with a peak of four nothing comes in between.
    assert variation(Traffic(5, count=20_000, pattern=Bursts())) > 1.3
    silent = Traffic(5, count=20_000, pattern=Bursts(on_s=10, off_s=30, peak=4))
    assert variation(silent) > 4


def test_a_day_has_a_top_and_a_bottom() -> None:
    traffic = Traffic(10, duration_s=6000, pattern=Diurnal(period_s=600, swing=0.8))
    quarters = Counter(int(at_s % 600 / 150) for at_s in traffic.arrivals(traffic.rng("test")))
    mean = sum(quarters.values()) / 4
    rising = 0.8 * 2 / 3.14159
    assert quarters[0] / mean == pytest.approx(1 + rising, abs=0.1)
    assert quarters[2] / mean == pytest.approx(1 - rising, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bursts(peak=5), "peak must be 1 to 4"),
        (lambda: Bursts(peak=0.5), "peak must be 1 to 4"),
        (lambda: Bursts(on_s=0), "on_s and off_s must be above 0"),
        (lambda: Diurnal(swing=1.1), "swing must be 0 to 1"),
        (lambda: Diurnal(period_s=0), "period_s above 0"),
    ],
)
def test_bad_patterns_say_so(make: Callable[[], object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make()
