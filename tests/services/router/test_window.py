"""The last minutes: what falls into which bucket, and quantiles within a bin's width."""

import random
import statistics

import pytest

from dualmap_router.ui.window import BUCKET_S, NUM_BUCKETS, Window, total


def test_quantiles_are_right_within_a_bin() -> None:
    chance = random.Random(5)
    window, values = Window(), [chance.lognormvariate(-1.0, 1.2) for _ in range(5000)]
    for value in values:
        window.at(1000.0).first_token(value, 1.0)
    bucket = total(window.read(1000.0))
    for q in (0.5, 0.9, 0.99):
        exact = statistics.quantiles(values, n=100)[round(q * 100) - 1]
        assert bucket.ttft_s(q) == pytest.approx(exact, rel=0.08)
    assert bucket.met == sum(value <= 1.0 for value in values)
    assert bucket.met + bucket.missed == len(values)


def test_it_holds_the_last_minutes_and_no_more() -> None:
    window = Window()
    for second in range(2 * NUM_BUCKETS):
        window.at(second * BUCKET_S).requests += 1
    last_s = (2 * NUM_BUCKETS - 1) * BUCKET_S
    read = window.read(last_s)
    assert len(read) == NUM_BUCKETS
    assert total(read).requests == NUM_BUCKETS
    assert total(window.read(last_s + NUM_BUCKETS * BUCKET_S)).requests == 0


def test_idle_spans_are_empty_and_in_their_place() -> None:
    window = Window()
    window.at(100.0).requests += 1
    window.at(100.0 + 3 * BUCKET_S).requests += 2
    assert [bucket.requests for bucket in window.read(100.0 + 4 * BUCKET_S)][-5:] == [1, 0, 0, 2, 0]


def test_a_late_told_first_token_goes_back_to_its_time() -> None:
    window = Window()
    window.at(100.0).requests += 1
    window.at(200.0).requests += 1
    window.at(101.0).first_token(0.5, 1.0)
    read = window.read(200.0)
    assert [bucket.met for bucket in read if bucket.requests] == [1, 0]
    # A span without a bucket counts with the next that has one; one in flight counts where it happened.
    window.at(0.0).first_token(0.5, 1.0)
    read = window.read(200.0, [(200.0, 2.0, 1.0), (-50.0, 0.1, 1.0)])
    assert (total(read).met, total(read).missed, read[-1].missed) == (3, 1, 1)


def test_nothing_has_no_quantile() -> None:
    bucket = total(Window().read(5.0))
    assert (bucket.ttft_s(0.5), bucket.attainment) == (None, None)
