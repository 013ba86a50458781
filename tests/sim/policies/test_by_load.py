from collections import Counter

import pytest

from dualmap_sim.policies.dynamo import Dynamo
from dualmap_sim.policies.lmetric import LMetric
from dualmap_sim.policies.measures import cached_tokens, uncached_tokens
from dualmap_sim.policies.mooncake import Mooncake
from dualmap_sim.policies.power_of_two import PowerOfTwo
from tests.sim.policies.sights import HandMade, flight

PROMPT = tuple(range(100, 110))


def test_power_of_two_never_takes_the_most_loaded_and_draws_all_others() -> None:
    pool = HandMade(4)
    for index in range(4):
        pool.pending(index, tokens=1000 * index)
    policy = PowerOfTwo()
    taken = Counter(policy.place(flight(PROMPT), pool.sight).index for _ in range(200))
    assert set(taken) == {0, 1, 2}
    assert taken[0] > taken[1] > taken[2]


def test_power_of_two_draws_from_the_members_of_now() -> None:
    pool = HandMade(4)
    pool.pool.change_members({3: 1.0})
    assert PowerOfTwo().place(flight(PROMPT), pool.sight).index == 3


@pytest.mark.parametrize(
    ("wait_s", "depth", "expected"),
    [
        (0.0, 10, 1),  # the prefix saves work
        (0.3, 10, 1),  # about 0.5 s are saved: worth a wait of 0.3
        (0.6, 10, 0),  # and not one of 0.6
        (0.1, 0, 0),
    ],
)
def test_mooncake_weighs_the_queue_against_the_prefill(wait_s: float, depth: int, expected: int) -> None:
    pool = HandMade(2)
    pool.holds(1, PROMPT[:depth])
    if wait_s:
        pool.pending(1, own_s=wait_s)
    assert Mooncake().place(flight(PROMPT), pool.sight).index == expected


def test_mooncake_counts_late_work_too() -> None:
    pool = HandMade(2)
    pool.pending(0, own_s=1.0)
    pool.books.infeasible_s[1] = 2.0
    pool.pending(1, own_s=0.1)
    assert Mooncake().place(flight(PROMPT), pool.sight).index == 0


@pytest.mark.parametrize(
    ("pending_tokens", "decode_blocks", "depth", "expected"),
    [
        (0, 0, 0, 0),
        (0, 0, 3, 1),
        (512, 0, 3, 1),  # 7 to prefill, 1 more that waits, and the 1 that it holds: against 10
        (2 * 512, 0, 3, 0),
        (0, 2, 3, 1),
        (0, 4, 3, 0),
        (0, 4, 5, 1),
        (0, 6, 5, 0),
    ],
)
def test_dynamo_adds_blocks_to_prefill_and_blocks_that_decode(
    pending_tokens: int, decode_blocks: int, depth: int, expected: int
) -> None:
    pool = HandMade(2)
    pool.holds(1, PROMPT[:depth])
    if pending_tokens:
        pool.pending(1, tokens=pending_tokens, blocks=pending_tokens // 512)
    if decode_blocks:
        pool.decoding(1, blocks=decode_blocks)
    assert Dynamo().place(flight(PROMPT), pool.sight).index == expected


@pytest.mark.parametrize(
    ("pending_tokens", "decoding", "expected"),
    [
        (0, 2, 0),  # 5120 x 3 against 11120 x 2
        (0, 4, 1),  # 5120 x 5
        (20_000, 0, 1),
    ],
)
def test_lmetric_multiplies_tokens_by_requests(pending_tokens: int, decoding: int, expected: int) -> None:
    pool = HandMade(2)
    pool.decoding(0, decoding)
    if pending_tokens:
        pool.pending(0, tokens=pending_tokens)
    pool.pending(1, tokens=6000)
    assert LMetric().place(flight(PROMPT), pool.sight).index == expected


def test_lmetric_counts_the_request_itself() -> None:
    pool = HandMade(2)
    # An idle instance still costs its prefill: 5120 x 1 against 1024 x 2.
    pool.holds(1, PROMPT[:8])
    pool.decoding(1)
    assert LMetric().place(flight(PROMPT), pool.sight).index == 1


@pytest.mark.parametrize(("tail_tokens", "cached"), [(0, 5119), (1, 5120), (500, 5120)])
def test_the_last_token_is_always_computed(tail_tokens: int, cached: int) -> None:
    arrival = flight(PROMPT, tail_tokens).arrival
    assert cached_tokens(arrival, 10) == cached
    assert uncached_tokens(arrival, 10) == arrival.input_tokens - cached
    assert cached_tokens(arrival, 0) == 0
