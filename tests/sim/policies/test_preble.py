import pytest

from dualmap.types import PrefillSpeed
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.policies.preble import Preble
from dualmap_sim.policies.preble_window import Prefix, PrefixWindow, WindowMedian
from tests.sim.policies.sights import HandMade, flight

PROMPT = tuple(range(100, 110))
SPEED = PrefillSpeed(0.0, 0.001, 0.0)
CHUNK_S = 0.512


def place(policy: Preble, pool: HandMade, request: Flight, at_s: float = 0.0) -> int:
    """Place it, and let the instance hold what it was given."""
    index = policy.place(request, pool.at(at_s)).index
    pool.holds(index, request.arrival.chunks)
    return index


def answered(request: Flight, at_s: float, ttft_s: float) -> Flight:
    """Its first token came after `ttft_s`, at `at_s`."""
    request.arrival = flight(request.arrival.chunks, at_s=at_s - ttft_s).arrival
    request.first_token_s = at_s
    return request


# The window


def test_load_is_the_missed_prefill_time_shared_by_the_holders() -> None:
    window = PrefixWindow(180.0)
    window.allocate(0.0, 0, (1, 2), 0, SPEED)
    assert window.load_s(0) == pytest.approx(2 * CHUNK_S)
    window.allocate(1.0, 0, (1, 2), 2, SPEED)  # a hit adds nothing
    assert window.load_s(0) == pytest.approx(2 * CHUNK_S)
    window.allocate(2.0, 1, (1, 3), 0, SPEED)  # chunk 1: two misses over two holders
    assert window.load_s(0) == pytest.approx(2 * CHUNK_S)
    assert window.load_s(1) == pytest.approx(2 * CHUNK_S)
    window.allocate(3.0, 2, (1,), 1, SPEED)  # a third holder takes its share of two misses
    assert window.load_s(2) == pytest.approx(2 / 3 * CHUNK_S)
    assert window.load_s(0) == pytest.approx((2 / 3 + 1) * CHUNK_S)


def test_what_leaves_the_window_weighs_nothing() -> None:
    window = PrefixWindow(180.0)
    window.allocate(0.0, 0, (1, 2), 0, SPEED)
    window.allocate(10.0, 1, (1, 2), 1, SPEED)
    window.expire(185.0)
    assert window.load_s(0) == pytest.approx(0.0)
    assert window.load_s(1) == pytest.approx(CHUNK_S)
    window.expire(191.0)
    assert window.load_s(1) == pytest.approx(0.0)
    assert window.prefix(1) is None


def test_eviction_costs_the_miss_rate_times_the_prefill_time() -> None:
    window = PrefixWindow(180.0)
    window.allocate(0.0, 0, (1, 2), 0, SPEED)
    window.allocate(0.0, 0, (1,), 1, SPEED)
    assert window.lost_s((1, 2, 99)) == pytest.approx(1.5 * CHUNK_S)


@pytest.mark.parametrize(("newer_s", "doubled"), [(1.9, False), (2.0, True)])
def test_ttft_doubles_between_the_halves(newer_s: float, doubled: bool) -> None:
    prefix = Prefix(1.0, 0, True)
    prefix.ttfts.extend([(0.0, 50.0), (20.0, 0.5), (80.0, 1.5), (120.0, newer_s)])
    assert prefix.ttft_doubled(190.0, 180.0) is doubled


def test_no_ttft_doubles_without_both_halves() -> None:
    prefix = Prefix(1.0, 0, True)
    prefix.ttfts.append((120.0, 9.0))
    assert not prefix.ttft_doubled(190.0, 180.0)


def test_medians_forget() -> None:
    values = WindowMedian(180.0)
    assert values.median(0.0) == 0.0
    for at_s, value in enumerate((5.0, 1.0, 3.0)):
        values.add(at_s, value)
    assert values.median(100.0) == 3.0
    assert values.median(181.5) == 3.0
    assert values.median(182.5) == 0.0


# E2


def test_exploits_when_more_is_cached_than_not() -> None:
    pool, policy = HandMade(3, speed=SPEED), Preble(840)
    assert place(policy, pool, flight(PROMPT)) == 0
    # Ten chunks cached and nine not, although others have no load: but the pool is uneven then, so level it.
    assert place(policy, pool, flight(range(200, 210))) == 1
    assert place(policy, pool, flight(range(300, 310))) == 2
    assert place(policy, pool, flight((*PROMPT, *range(400, 409)))) == 0


def test_explores_at_half_and_under() -> None:
    pool, policy = HandMade(2, speed=SPEED), Preble(840)
    assert place(policy, pool, flight(PROMPT)) == 0
    # Equal parts. Here: load 10 chunks + prefill 10; there: load 0 + prefill 20: a tie, so a little less load decides.
    assert place(policy, pool, flight((7,))) == 1
    assert place(policy, pool, flight((*PROMPT, *range(400, 410)))) == 0
    assert place(policy, pool, flight((*PROMPT, *range(500, 530)))) == 1


def test_running_requests_are_load_by_the_median_output_and_tpot() -> None:
    pool, policy = HandMade(2, speed=SPEED), Preble(840)
    pool.decoding(0)
    assert place(policy, pool, flight((1,))) == 0  # nothing known of outputs: a tie
    done = answered(flight(), 1.0, 0.5)
    done.finished_s = 19.0  # 10 tokens, 2 s each
    policy.finished(done)
    assert place(policy, pool, flight((*range(20, 30),)), 20.0) == 1
    assert place(policy, pool, flight((*range(30, 40),)), 20.0) == 1  # 5 s + 5 s against 20 s
    assert policy._window.load_s(1) == pytest.approx(20 * CHUNK_S)


@pytest.mark.parametrize(("kv_blocks", "expected"), [(10, 0), (840, 1)])
def test_eviction_of_what_is_asked_for_keeps_explorers_away(kv_blocks: int, expected: int) -> None:
    pool, policy = HandMade(2, speed=SPEED), Preble(kv_blocks)
    assert place(policy, pool, flight(PROMPT)) == 0
    assert place(policy, pool, flight(range(200, 210)), 100.0) == 1
    # One that decodes weighs as much as 10.5 chunks.
    pool.decoding(0)
    done = answered(flight(), 150.0, 0.5)
    done.finished_s = 150.0 + 10.5 * CHUNK_S / 10 * 9
    policy.finished(done)
    # Loads of 10.5 and 10; but a full second instance would lose three chunks of this window, the first of an older.
    assert place(policy, pool, flight((1, 2, 3)), 181.0) == expected


@pytest.mark.parametrize(("others_chunks", "expected"), [(6, 1), (7, 0)])
def test_rebalances_from_one_and_a_half_times_the_lowest(others_chunks: int, expected: int) -> None:
    pool, policy = HandMade(2, speed=SPEED), Preble(840)
    assert place(policy, pool, flight(PROMPT)) == 0
    assert place(policy, pool, flight(range(200, 200 + others_chunks))) == 1
    # 10 chunks against 6 are 1.67, against 7 they are 1.43.
    assert place(policy, pool, flight((*PROMPT, 7))) == expected


@pytest.mark.parametrize(("newer_s", "expected"), [(1.9, [0, 0]), (2.0, [2, 0])])
def test_replicates_a_prefix_that_became_slow_once(newer_s: float, expected: list[int]) -> None:
    pool, policy = HandMade(3, speed=SPEED), Preble(840)
    for start, num in ((100, 10), (200, 9), (300, 8)):
        place(policy, pool, flight(range(start, start + num)))
    # Of those without it, although the holder has the least load of all.
    pool.decoding(1)
    pool.decoding(2)
    done = answered(flight(), 1.0, 0.5)
    done.finished_s = 91.0
    policy.finished(done)
    policy.first_token(answered(flight(PROMPT), 10.0, 1.0))
    policy.first_token(answered(flight(PROMPT), 110.0, newer_s))
    # Once: the second finds the TTFTs counted anew.
    placed = [policy.place(flight((*PROMPT, last)), pool.at(120.0)).index for last in (1, 2)]
    assert placed == expected
