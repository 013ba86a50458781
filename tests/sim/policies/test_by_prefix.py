import pytest

from dualmap_sim.policies.aibrix_prefix import AIBrixPrefix
from dualmap_sim.policies.llm_d import MAX_TTFT_PENALTY_S, LlmD
from dualmap_sim.policies.sent_prefixes import SentPrefixes
from dualmap_sim.policies.sglang import SGLangCacheAware
from dualmap_sim.policies.skywalker import SkyWalker
from tests.sim.policies.sights import HandMade, flight

PROMPT = tuple(range(100, 110))


# sglang


def test_sglang_takes_the_best_match_over_half() -> None:
    pool, policy = HandMade(3), SGLangCacheAware()
    first = policy.place(flight(PROMPT), pool.sight).index
    assert policy.place(flight((*PROMPT, 7, 8, 9)), pool.sight).index == first


def test_sglang_goes_to_the_smallest_tree_without_a_good_match() -> None:
    pool, policy = HandMade(3), SGLangCacheAware()
    assert policy.place(flight(PROMPT), pool.sight).index == 0
    # Exactly half of it is no good match.
    assert policy.place(flight((*PROMPT, *range(200, 210))), pool.sight).index == 1
    assert policy.place(flight((1, 2)), pool.sight).index == 2
    assert policy.place(flight((3, 4)), pool.sight).index == 2


def test_sglang_does_not_know_what_engines_hold() -> None:
    pool = HandMade(3)
    pool.holds(2, PROMPT)
    assert SGLangCacheAware().place(flight(PROMPT), pool.sight).index == 0


@pytest.mark.parametrize(("num_more", "expected"), [(32, 0), (33, 1)])
def test_sglang_goes_to_the_shortest_queue_when_uneven(num_more: int, expected: int) -> None:
    pool, policy = HandMade(3), SGLangCacheAware()
    assert policy.place(flight(PROMPT), pool.sight).index == 0
    pool.decoding(0, 1 + num_more)
    pool.decoding(1, 1)
    pool.decoding(2, 2)
    assert policy.place(flight(PROMPT), pool.sight).index == expected


def test_sglang_forgets_over_its_bound_once_a_minute() -> None:
    pool, policy = HandMade(1), SGLangCacheAware(max_chunks=10)
    policy.place(flight(PROMPT), pool.sight)
    policy.place(flight((1, 2, 3)), pool.at(59.0))
    tree = policy._tree(0)
    assert len(tree) == 13
    policy.place(flight((1, 2, 3)), pool.at(60.0))
    assert len(tree) == 10
    assert tree.match(PROMPT) == 7


def test_memory_drops_the_ends_of_the_least_recent() -> None:
    memory = SentPrefixes(4)
    memory.add((1, 2, 3))
    memory.add((8,))
    assert list(memory.evicted_by(2)) == [3, 2]
    memory.add((9,))
    memory.trim()
    assert memory.match((1, 2, 3)) == 2
    memory.add((1,))
    memory.add((10, 11))
    memory.trim()
    assert memory.match((1, 2)) == 1
    assert memory.match((8,)) == 0


# llm-d


def test_llm_d_sticks_to_the_prefix_until_the_penalty_is_too_high() -> None:
    pool, policy = HandMade(3), LlmD(840)
    pool.holds(1, PROMPT)
    # About 0.5 s are saved; two that wait would take it elsewhere by score.
    for own_s in (MAX_TTFT_PENALTY_S, 0.4):
        assert policy.place(flight(PROMPT), pool.sight).index == 1
        pool.pending(1, own_s=own_s)
        pool.decoding(1, blocks=300)
    assert policy.place(flight(PROMPT), pool.sight).index == 1
    pool.pending(1, own_s=0.4)
    assert policy.place(flight(PROMPT), pool.sight).index == 0


def test_llm_d_chooses_by_score_among_several_that_hold_the_prefix() -> None:
    pool = HandMade(3)
    pool.holds(1, PROMPT)
    pool.holds(2, PROMPT)
    pool.pending(1)
    assert LlmD(840).place(flight(PROMPT), pool.sight).index == 2


@pytest.mark.parametrize(
    ("depth", "waiting", "decode_blocks", "expected"),
    [
        (4, 0, 0, 1),  # 40 % of the prompt are 1.2
        (4, 1, 0, 0),  # the longest queue is 2 behind
        (4, 0, 55, 1),  # 55 % of the blocks are 1.1
        (4, 0, 65, 0),
        (0, 0, 1, 0),
    ],
)
def test_llm_d_weighs_prefix_queue_and_kv(
    depth: int, waiting: int, decode_blocks: int, expected: int
) -> None:
    pool = HandMade(2)
    pool.holds(1, PROMPT[:depth])  # less than what makes it stick
    for _ in range(waiting):
        pool.pending(1)
    if decode_blocks:
        pool.decoding(1, blocks=decode_blocks)
    assert LlmD(100).place(flight(PROMPT), pool.sight).index == expected


def test_llm_d_spreads_the_queue_over_the_pool() -> None:
    pool = HandMade(3)
    pool.holds(1, PROMPT[:4])
    # One of four waits there: 0.5 of 2 lost, against the prefix's 1.2.
    pool.pending(1)
    for _ in range(4):
        pool.pending(2)
    assert LlmD(100).place(flight(PROMPT), pool.sight).index == 1


# aibrix-prefix


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ((4, 4, 4, 4), 3),
        ((4, 4, 4, 5), 2),  # over mean + 1 sigma: the next best match
        ((4, 4, 5, 5), 3),  # within it
        ((1, 0, 2, 9), 1),  # uneven: fewest requests
        ((1, 1, 1, 9), 2),  # a difference of 8 is not
    ],
)
def test_aibrix_bounds_the_best_match(running: tuple[int, ...], expected: int) -> None:
    pool = HandMade(4)
    pool.holds(3, PROMPT)
    pool.holds(2, PROMPT[:3])
    for index, num in enumerate(running):
        pool.decoding(index, num)
    assert AIBrixPrefix().place(flight(PROMPT), pool.sight).index == expected


# skywalker


def test_skywalker_waits_while_all_have_something_pending() -> None:
    pool = HandMade(2)
    first, _ = pool.pending(0), pool.pending(1)
    assert SkyWalker().place(flight(PROMPT), pool.sight) is None
    pool.books.release(first)
    choice = SkyWalker().place(flight(PROMPT), pool.sight)
    assert choice is not None
    assert choice.index == 0


def test_skywalker_matches_prefixes_among_the_free() -> None:
    pool = HandMade(3)
    pool.holds(1, PROMPT)
    pool.holds(2, PROMPT[:3])
    choice = SkyWalker().place(flight(PROMPT), pool.sight)
    assert choice is not None
    assert choice.index == 1
    pool.pending(1)
    choice = SkyWalker().place(flight(PROMPT), pool.sight)
    assert choice is not None
    assert choice.index == 2


def test_what_decodes_is_not_pending_to_skywalker() -> None:
    pool = HandMade(2)
    pool.pending(0)
    pool.decoding(1, 20)
    choice = SkyWalker().place(flight(PROMPT), pool.sight)
    assert choice is not None
    assert choice.index == 1
