"""The prefix key: hot prefixes split, cold ones cost one count, and the state stays small."""

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.hash_ring import RingPair
from dualmap.prefix import chunk_hashes, prefix_seed
from dualmap.prefix_key import (
    DECAY,
    HALF_LIFE_REQUESTS,
    MAX_DEPTH,
    MAX_SPLITS,
    ROTATE_EVERY,
    PrefixCounts,
    key_depth,
    split_threshold,
)

CHUNK = 8
SEED = prefix_seed("pool")


def prompt(*words: str) -> list[int]:
    """A prompt of one chunk per word."""
    return chunk_hashes(b"".join(word.encode().ljust(CHUNK, b".")[:CHUNK] for word in words), SEED, CHUNK)


def unique(i: int) -> list[int]:
    """A prompt that shares nothing."""
    return prompt(f"u{i}", "x", "y")


@pytest.mark.parametrize(
    ("hashes", "splits", "depth"),
    [
        ([], set(), 0),
        ([1, 2, 3], set(), 1),
        ([1, 2, 3], {1}, 2),
        ([1, 2, 3], {2}, 1),
        ([1, 2, 3], {1, 2}, 3),
        ([1, 2, 3], {1, 2, 3}, 3),
        (list(range(100)), set(range(100)), MAX_DEPTH),
        (list(range(100)), set(range(31)), 32),
        (list(range(100)), set(range(30)), 31),
    ],
)
def test_key_depth(hashes: list[int], splits: set[int], depth: int) -> None:
    assert key_depth(hashes, splits) == depth


@given(st.lists(st.integers(0, 50), max_size=60, unique=True), st.sets(st.integers(0, 50)))
def test_the_key_ends_one_after_the_leading_run_of_splits(hashes: list[int], splits: set[int]) -> None:
    depth = key_depth(hashes, splits)
    assert depth <= min(MAX_DEPTH, len(hashes))
    assert all(chunk in splits for chunk in hashes[: depth - 1])
    if 0 < depth < min(MAX_DEPTH, len(hashes)):
        assert hashes[depth - 1] not in splits


def test_counts_halve_in_the_half_life() -> None:
    assert pytest.approx(0.5) == DECAY**HALF_LIFE_REQUESTS
    counts = PrefixCounts()
    for i in range(5000):
        counts.observe(unique(i), 8)
    assert counts.total == pytest.approx(1 / (1 - DECAY), rel=1e-3)
    assert split_threshold(counts.total, 8) == pytest.approx(36.1, abs=0.2)
    assert split_threshold(counts.total, 64) == 16.0


def test_a_hot_prefix_splits_and_a_cold_one_does_not() -> None:
    counts = PrefixCounts()
    versions = []
    for i in range(400):
        hot = i % 4 == 0  # a quarter of the requests, against a bound of a sixteenth
        counts.observe(prompt("hot", f"h{i}") if hot else unique(i), 8)
        versions.append(counts.version)
    assert counts.splits == {prompt("hot")[0]}
    assert key_depth(prompt("hot", "next", "after"), counts.splits) == 2
    assert versions == sorted(versions) and versions[-1] == 1


def test_a_split_prefix_cools_and_is_unsplit_by_the_next_rotations() -> None:
    counts = PrefixCounts()
    for i in range(300):
        counts.observe(prompt("hot", f"h{i}"), 8)
    assert counts.splits
    version = counts.version
    changes = [i for i in range(2 * ROTATE_EVERY) if counts.observe(unique(i), 8)]
    assert not counts.splits
    assert len(changes) == 1 and counts.version == version + 1


def test_a_split_prefix_that_grows_rare_is_unsplit_when_seen() -> None:
    counts = PrefixCounts()
    for i in range(100):
        counts.observe(prompt("hot", f"h{i}"), 8)
    assert counts.splits
    for i in range(1500):
        counts.observe(unique(i), 8)
    assert counts.splits
    assert counts.observe(prompt("hot", "again"), 8)
    assert not counts.splits


def test_hysteresis_holds_between_half_and_the_whole_bound() -> None:
    # A share of 1/21, three quarters of the bound, neither splits a cold prefix nor unsplits a split one.
    warm, cold = PrefixCounts(), PrefixCounts()
    for i in range(200):
        warm.observe(prompt("p", f"h{i}"), 8)
    assert prompt("p")[0] in warm.splits
    for i in range(3000):
        hashes = prompt("p", f"h{i}") if i % 21 == 20 else unique(i)
        warm.observe(hashes, 8)
        cold.observe(hashes, 8)
        assert not cold.splits
    assert warm.splits == {prompt("p")[0]}


@pytest.mark.parametrize("num_instances", [4, 8, 16])
@pytest.mark.parametrize("requests", [1000, 4000])
def test_only_shares_matter_not_how_many_requests_there_were(num_instances: int, requests: int) -> None:
    chance = random.Random(num_instances)
    counts = PrefixCounts()
    bound = 0.5 / num_instances
    for i in range(requests):
        draw = chance.random()
        if draw < 2 * bound:
            counts.observe(prompt("over", f"h{i}"), num_instances)
        elif draw < 2.4 * bound:
            counts.observe(prompt("under", f"h{i}"), num_instances)
        else:
            counts.observe(unique(i), num_instances)
    assert counts.splits == {prompt("over")[0]}


def test_a_cold_request_touches_one_count() -> None:
    counts = PrefixCounts()
    for i in range(100):
        counts.observe(prompt(f"u{i}", *"abcdefgh"), 8)
        assert len(counts.current) == i + 1


def test_memory_is_bounded_by_two_generations() -> None:
    counts = PrefixCounts()
    for i in range(3 * ROTATE_EVERY):
        counts.observe(prompt(f"u{i}", "a", "b"), 8)
        assert len(counts.current) + len(counts.older) <= 2 * (ROTATE_EVERY + MAX_SPLITS)
    assert len(counts.current) + len(counts.older) <= 2 * ROTATE_EVERY


def test_the_split_set_is_bounded() -> None:
    counts = PrefixCounts(splits=set(range(MAX_SPLITS)))
    for i in range(50):
        counts.observe(prompt("hot", f"h{i}"), 8)
    assert len(counts.splits) == MAX_SPLITS


@given(
    stream=st.lists(st.lists(st.sampled_from("abc"), min_size=0, max_size=40), max_size=60),
    repeat=st.integers(1, 30),
    num_instances=st.integers(0, 64),
)
def test_invariants_on_any_stream(stream: list[list[str]], repeat: int, num_instances: int) -> None:
    counts = PrefixCounts()
    for words in stream:
        hashes = prompt(*words)
        for _ in range(repeat):
            before, version = set(counts.splits), counts.version
            changed = counts.observe(hashes, num_instances)
            assert changed == (counts.version != version) == (counts.splits != before)
            assert abs(counts.version - version) >= len(before ^ counts.splits)
            assert key_depth(hashes, counts.splits) <= MAX_DEPTH
    assert counts.seen == len(stream) * repeat
    assert all(count <= counts.total + 1e-9 for count, at in counts.current.values() if at == counts.seen)


def test_a_rotation_counts_along_the_key_that_was_routed() -> None:
    counts = PrefixCounts(splits={prompt("p")[0]}, seen=ROTATE_EVERY - 1)
    counts.observe(prompt("p", "q"), 8)
    assert counts.splits == set()
    assert list(counts.current) == prompt("p", "q")


def spread(streams: list[list[int]], num_instances: int) -> tuple[PrefixCounts, Counter[str]]:
    """How often each instance is a candidate of the later half of a stream."""
    rings = RingPair({f"w{i}": 1.0 for i in range(num_instances)})
    counts, used = PrefixCounts(), Counter[str]()
    for i, hashes in enumerate(streams):
        if i >= len(streams) // 2:
            used.update(rings.candidates(hashes[key_depth(hashes, counts.splits) - 1]))
        counts.observe(hashes, num_instances)
    return counts, used


def test_one_popular_system_prompt_spreads_over_the_pool() -> None:
    stream = [prompt("sys1", "sys2", f"user{i}", "tail") for i in range(1000)]
    counts, used = spread(stream, 8)
    assert key_depth(prompt("sys1", "sys2", "new", "tail"), counts.splits) == 3
    assert len(used) == 8
    assert max(used.values()) < 2 * min(used.values())


def test_popular_prompts_get_keys_past_what_they_share() -> None:
    # 24 prompts of 8 chunks behind a shared system prompt of 2, each with unique tails.
    chance = random.Random(3)
    popular = [["sys1", "sys2", *(f"p{k}c{j}" for j in range(6))] for k in range(24)]
    stream = [prompt(*chance.choice(popular), f"user{i}") for i in range(2000)]
    counts, used = spread(stream, 8)
    depths = {key_depth(prompt(*words, "new"), counts.splits) for words in popular}
    assert min(depths) == 3  # past the shared part, so that they part
    assert max(depths) < 9  # and short of the tails, so that each still meets its cache
    assert len(used) == 8


def test_generations_drop_counts_that_were_long_unseen() -> None:
    counts = PrefixCounts()
    counts.observe(unique(-1), 8)
    for i in islice(range(10_000), 2 * ROTATE_EVERY):
        counts.observe(unique(i), 8)
    assert unique(-1)[0] not in counts.current and unique(-1)[0] not in counts.older
