"""A tenant's bucket: never more than it holds, never less than its rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.limits import Limits, take


@pytest.mark.parametrize("burst", [1, 3, 100])
def test_a_burst_and_then_the_rate(burst: int) -> None:
    limits, full_at_s = Limits(10.0, burst), 0.0
    left = []
    for _ in range(burst):
        taken = take(full_at_s, 50.0, limits)
        assert taken.wait_s == 0.0
        full_at_s = taken.full_at_s
        left.append(taken.remaining)
    assert left == list(range(burst - 1, -1, -1))
    refused = take(full_at_s, 50.0, limits)
    assert refused.full_at_s == full_at_s
    assert refused.wait_s == pytest.approx(0.1)
    assert take(full_at_s, 50.0 + refused.wait_s, limits).wait_s == 0.0
    # Once full it forgets how long it has been.
    assert take(full_at_s, 1e6, limits).remaining == burst - 1


@given(
    gaps=st.lists(st.floats(0.0, 2.0), max_size=60),
    rate=st.floats(0.5, 50.0),
    burst=st.integers(1, 20),
)
def test_no_window_lets_in_more_than_burst_and_rate(gaps: list[float], rate: float, burst: int) -> None:
    limits, now_s, full_at_s = Limits(rate, burst), 1000.0, 0.0
    let_in: list[float] = []
    for gap_s in gaps:
        now_s += gap_s
        taken = take(full_at_s, now_s, limits)
        full_at_s = taken.full_at_s
        if not taken.wait_s:
            let_in.append(now_s)
        else:
            assert take(full_at_s, now_s + taken.wait_s, limits).wait_s == 0.0
    for first, start_s in enumerate(let_in):
        for count, end_s in enumerate(let_in[first:], 1):
            assert count <= burst + rate * (end_s - start_s) + 1e-6
    # ... and whoever keeps to the rate is never refused.
    full_at_s = 0.0
    for number in range(30):
        taken = take(full_at_s, number / rate, limits)
        assert taken.wait_s == 0.0
        full_at_s = taken.full_at_s


@given(st.floats(0.0, 1e4), st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 64))
def test_shares_add_up_to_the_limit_or_to_one_each(rate: float, burst: int, at_once: int, parts: int) -> None:
    share = Limits(rate, burst, at_once).share(parts)
    assert share.requests_per_s * parts == pytest.approx(rate)
    assert share.burst * parts <= max(burst, parts)
    assert share.concurrency * parts <= (max(at_once, parts) if at_once else 0)
    assert bool(share.concurrency) == bool(at_once)
    assert math.isclose(rate, 0.0) or share.any
