"""What is said of a change before it is made is what the rings then do."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap.errors import EmptyPoolError
from dualmap.ring_change import compare_rings

_chance = random.Random(3)
KEYS = [_chance.getrandbits(64) for _ in range(3000)]


def pool(size: int) -> dict[str, float]:
    return {f"w{number}": 1.0 for number in range(size)}


@given(st.integers(2, 24))
@settings(max_examples=15, deadline=None)
def test_joining_changes_its_share_and_leaves_nobody_cold(size: int) -> None:
    change = compare_rings(pool(size), pool(size + 1), KEYS)
    # DESIGN 5.3: about 2/(n+1) of the pairs.
    assert change.changed_share == pytest.approx(2 / (size + 1), abs=0.05)
    assert change.cold_share == 0.0
    assert sum(change.before.values()) == pytest.approx(2.0)
    assert change.after[f"w{size}"] == pytest.approx(2 / (size + 1), abs=0.05)


def test_leaving_is_joining_seen_backwards() -> None:
    there, back = compare_rings(pool(5), pool(6), KEYS), compare_rings(pool(6), pool(5), KEYS)
    assert back.changed_share == there.changed_share
    assert (back.before, back.after) == (there.after, there.before)


def test_no_change_changes_nothing() -> None:
    change = compare_rings(pool(4), pool(4), KEYS)
    assert (change.changed_share, change.cold_share) == (0.0, 0.0)


def test_a_heavier_instance_gets_more_keys() -> None:
    change = compare_rings(pool(4), {**pool(4), "w0": 2.0}, KEYS)
    assert change.after["w0"] > change.before["w0"] * 1.3
    assert 0.0 < change.changed_share < 0.5


def test_an_empty_pool_has_no_candidates() -> None:
    with pytest.raises(EmptyPoolError):
        compare_rings(pool(2), {}, KEYS)
