"""Pauses before another try: they grow to a bound, begin again after a success, and differ from others'."""

import pytest

from dualmap_service.backoff import Backoff


@pytest.mark.parametrize(
    ("first_s", "most_s", "pauses"),
    [
        (0.05, 1.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        (1.0, 1.0, [1.0, 1.0, 1.0]),
        # A first pause beyond the longest is the longest.
        (90.0, 60.0, [90.0, 90.0]),
    ],
)
def test_each_pause_is_at_most_twice_the_one_before_up_to_a_bound(
    first_s: float, most_s: float, pauses: list[float]
) -> None:
    for _ in range(50):
        backoff = Backoff(first_s, most_s)
        for _ in range(2):
            drawn = [backoff.next_s() for _ in pauses]
            assert all(pause / 2 <= s <= pause for s, pause in zip(drawn, pauses, strict=True)), drawn
            backoff.reset()


def test_many_that_lost_one_thing_do_not_come_back_in_step() -> None:
    """At every try they are spread over half of the pause: of ten parts of that each has its share of them."""
    many = [Backoff(0.05, 1.0) for _ in range(1000)]
    for pause_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        shares = [0] * 10
        for backoff in many:
            shares[min(9, int((backoff.next_s() / pause_s - 0.5) * 20))] += 1
        # A hundred each on average; five standard deviations off would be fifty.
        assert min(shares) > 50, shares
