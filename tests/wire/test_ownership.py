"""Owned chunks: bounded, trimmed from the tail of what was used least lately, gone with the generation."""

import random
from typing import Any

import pytest

from dualmap.prefix import owned_depth
from dualmap_wire.redis_functions import Routed, pack_hashes
from tests.wire.pool import WirePool, route_call


@pytest.fixture(autouse=True)
def registered(pool: WirePool) -> None:
    pool.register("w1", generation=7)


def depth(pool: WirePool, hashes: list[int]) -> int:
    return pool.views(["w1"], hashes)[0].owned_chunks


def test_what_is_added_is_owned(pool: WirePool) -> None:
    hashes = list(range(1, 40))
    assert pool.own_add("w1", hashes[:25], generation=7) == 25
    assert depth(pool, hashes) == 25
    assert depth(pool, hashes[:10]) == 10
    assert depth(pool, [99, 98, 97]) == 0
    got = pool.route(route_call(["w1"], hashes=hashes))
    assert isinstance(got, Routed) and got.owned_chunks == 25


def test_adding_nothing(pool: WirePool) -> None:
    assert pool.own_add("w1", [], generation=7) == 0
    assert pool.client.exists(pool.keys.own("w1")) == 0


def test_long_prompts_are_added_in_batches(pool: WirePool) -> None:
    hashes = list(range(1, 1702))
    assert pool.own_add("w1", hashes, generation=7) == 1701
    assert depth(pool, hashes) == 1701


def test_another_generation_is_ignored(pool: WirePool) -> None:
    for generation in (6, 8):
        assert pool.own_add("w1", [1, 2], generation=generation) == 0
    assert pool.own_add("unknown", [1, 2], generation=7) == 0
    assert pool.client.keys(pool.keys.own("*")) == []


def test_a_new_generation_owns_nothing(pool: WirePool) -> None:
    pool.own_add("w1", [1, 2], generation=7)
    pool.register("w1", generation=7)
    assert depth(pool, [1, 2]) == 2
    pool.register("w1", generation=8)
    assert depth(pool, [1, 2]) == 0


def test_trimming_takes_a_prefix_from_its_tail(pool: WirePool) -> None:
    hashes = list(range(1, 21))
    pool.own_add("w1", hashes, generation=7, most=12)
    assert depth(pool, hashes) == 12
    assert sorted(pool.owned("w1")) == hashes[:12]


def test_trimming_takes_what_was_used_least_lately(pool: WirePool) -> None:
    old, kept, new = ([100 * k + i for i in range(1, 5)] for k in (1, 2, 3))
    for hashes in (old, kept, old[:2], kept, new):
        pool.own_add("w1", hashes, generation=7, most=10)
    assert [depth(pool, hashes) for hashes in (old, kept, new)] == [2, 4, 4]


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_and_whoever_owns_a_chunk_owns_those_before_it(pool: WirePool, seed: int) -> None:
    """On a random tree of prompts: what the binary search of `owned_depth` relies on."""
    chance = random.Random(seed)
    paths = [[chance.randrange(3) for _ in range(chance.randrange(1, 12))] for _ in range(30)]
    prompts = [[hash(tuple(path[: i + 1])) % 2**64 for i in range(len(path))] for path in paths]
    for _ in range(120):
        pool.own_add("w1", chance.choice(prompts), generation=7, most=40)
        owned = set(pool.owned("w1"))
        assert len(owned) <= 40
        for prompt in prompts:
            flags = [chunk in owned for chunk in prompt]
            assert flags == sorted(flags, reverse=True)
    for prompt in prompts:
        assert depth(pool, prompt) == owned_depth(prompt, owned.__contains__)


def test_confirmed_and_evicted_chunks_count_at_once(pool: WirePool) -> None:
    hashes = list(range(1, 11))
    pool.own_add("w1", hashes, generation=7)
    pool.client.zrem(pool.keys.own("w1"), *(pack_hashes([h]) for h in hashes[6:]))
    assert depth(pool, hashes) == 6


GRACE_US = 1_000_000


def sync(
    pool: WirePool, which: str, held: list[int], gone: list[int], generation: int = 7, grace_us: int = 0
) -> Any:
    return pool.call("own_sync", "w1", generation, which, grace_us, pack_hashes(held), pack_hashes(gone))


def test_a_worker_corrects_what_routers_expected(pool: WirePool) -> None:
    pool.own_add("w1", [1, 2, 3], generation=7)
    assert sync(pool, "some", [2, 4], [3]) == [3]
    assert sorted(pool.owned("w1")) == [1, 2, 4]
    assert sync(pool, "all", [2, 4, 5], []) == [3]
    assert sorted(pool.owned("w1")) == [2, 4, 5]
    assert sync(pool, "all", [], []) == [0]


def test_what_a_router_has_just_written_is_spared_and_named(pool: WirePool) -> None:
    pool.own_add("w1", [1, 2], generation=7)
    count, *spared = sync(pool, "some", [9], [1, 8], grace_us=GRACE_US)
    assert (count, spared) == (3, [pack_hashes([1])])
    # What the worker wrote itself has no grace.
    assert sync(pool, "some", [], [9], grace_us=GRACE_US) == [2]
    assert sync(pool, "all", [], [], grace_us=GRACE_US)[0] == 2
    assert sync(pool, "some", [], [1, 2]) == [0]


def test_a_worker_of_another_generation_corrects_nothing(pool: WirePool) -> None:
    pool.own_add("w1", [1], generation=7)
    assert sync(pool, "all", [2], [], generation=6) == [-1]
    assert pool.owned("w1") == [1]


def test_many_chunks_are_corrected_at_once(pool: WirePool) -> None:
    many = list(range(1, 30_001))
    assert sync(pool, "all", many, []) == [30_000]
    assert depth(pool, many) == 30_000
    assert sync(pool, "all", many[:10], []) == [10]
    pool.own_add("w1", many, generation=7, most=100_000)
    assert len(sync(pool, "some", [], many, grace_us=GRACE_US)) == 1 + 1000
