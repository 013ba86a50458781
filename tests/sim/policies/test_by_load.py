from collections import Counter

import pytest

from dualmap_sim.policies.dynamo import Dynamo
from dualmap_sim.policies.lmetric import LMetric
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
        (2 * 512, 0, 3, 1),  # 2 + 7 blocks against 10
        (4 * 512, 0, 3, 0),
        (0, 2, 3, 1),
        (0, 4, 3, 0),
    ],
)
def test_dynamo_adds_blocks_to_prefill_and_blocks_that_decode(
    pending_tokens: int, decode_blocks: int, depth: int, expected: int
) -> None:
    pool = HandMade(2)
    pool.holds(1, PROMPT[:depth])
    if pending_tokens:
        pool.pending(1, tokens=pending_tokens)
    if decode_blocks:
        pool.decoding(1, blocks=decode_blocks)
    assert Dynamo().place(flight(PROMPT), pool.sight).index == expected


def test_lmetric_multiplies_tokens_by_requests() -> None:
    pool = HandMade(2)
    # (0 + 5120) x (2 + 1) against (6000 + 5120) x (1 + 0 + 0): the second has fewer requests but more tokens.
    pool.decoding(0, 2)
    pool.pending(1, tokens=6000)
    assert LMetric().place(flight(PROMPT), pool.sight).index == 0
    pool.decoding(0, 2)
    assert LMetric().place(flight(PROMPT), pool.sight).index == 1
