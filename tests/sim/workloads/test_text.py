from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.workloads import BYTES_PER_TOKEN, Span
from dualmap_sim.workloads.text import _units, block_text

KEYS = st.text(max_size=12)


def test_units_are_distinct_words_of_four_bytes() -> None:
    assert len(set(_units())) == 256
    assert all(len(unit.encode()) == BYTES_PER_TOKEN for unit in _units())


@given(KEYS, st.integers(0, 3000), st.integers(0, 3000))
def test_a_shorter_span_is_a_prefix_of_a_longer_one(key: str, one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert Span(key, long).text().startswith(Span(key, short).text())
    assert len(Span(key, long).text().encode()) == long * BYTES_PER_TOKEN


@given(st.sets(st.tuples(KEYS, st.integers(0, 50)), min_size=2, max_size=20))
def test_blocks_differ_within_their_first_eight_words(blocks: set[tuple[str, int]]) -> None:
    assert len({block_text(key, index)[:32] for key, index in blocks}) == len(blocks)


def test_text_is_the_same_in_every_process() -> None:
    assert block_text("golden", 0).startswith("wet did bet nod fit pin ink dew mad him ")
