import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_cli.load.gaps import add_gap, gap_percentile, merge_gaps
from dualmap_cli.load.percentiles import Percentiles, percentile, percentiles


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_histogram_is_close_to_the_exact_percentile(values: list[float], share: float) -> None:
    gaps: dict[int, int] = {}
    for value in values:
        add_gap(gaps, value, 1)
    assert gap_percentile(gaps, share) == pytest.approx(percentile(sorted(values), share), rel=0.03)


def test_histograms_merge_and_may_be_empty() -> None:
    one: dict[int, int] = {}
    add_gap(one, 0.0, 3)
    add_gap(one, 1.0, 1)
    assert sum(merge_gaps([one, one]).values()) == 8
    assert gap_percentile(merge_gaps([one, one]), 0.99) == 1.0
    assert gap_percentile({}, 0.5) is None


def test_percentiles_are_nearest_rank() -> None:
    assert percentiles(float(i) for i in range(100, 0, -1)) == Percentiles(50, 90, 99)
    assert percentiles([None, 3.0]) == Percentiles(3, 3, 3)
    assert percentiles([]) == Percentiles()
