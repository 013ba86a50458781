"""Expected TTFT, and the fit that follows what an instance does."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.ttft import DEFAULT_SPEED, PrefillFit, SpeedTracker, TokenRatio, estimate, split_prompt
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed, RunningPrefill, Slo

TRUE = PrefillSpeed(a_s=0.02, b_s_per_token=120e-6, c_s_per_token2=4e-9)
FLAT = PrefillSpeed(0.0, 1e-3, 0.0)
RULE = ChoiceRule(lambda_own=2.0)

SECONDS = st.floats(0.0, 100.0)


def request(tokens: int = 1000, slo_s: float = 5.0, chunk_tokens: float = 100.0) -> ChoiceRequest:
    return ChoiceRequest(prompt_tokens=tokens, chunk_tokens=chunk_tokens, slo_s=slo_s)


def view(
    feasible_s: float = 0.0,
    infeasible_s: float = 0.0,
    owned_chunks: int = 0,
    running: RunningPrefill | None = None,
    held: bool = False,
) -> InstanceView:
    return InstanceView("w", feasible_s, infeasible_s, owned_chunks, FLAT, running, held)


@pytest.mark.parametrize(
    ("tokens", "chunk_tokens", "owned", "expected"),
    [
        (1000, 100.0, 0, (1000, 0)),
        (1000, 100.0, 3, (700, 300)),
        (1000, 100.0, 10, (1, 999)),  # the last token is always computed
        (1000, 100.0, 99, (1, 999)),
        (1000, 33.4, 2, (934, 66)),
        (1, 100.0, 1, (1, 0)),
        (0, 100.0, 1, (1, 0)),
    ],
)
def test_split_prompt(tokens: int, chunk_tokens: float, owned: int, expected: tuple[int, int]) -> None:
    assert split_prompt(request(tokens, chunk_tokens=chunk_tokens), owned) == expected


def test_prefill_time_reads_all_tokens_before_each_new_one() -> None:
    speed = PrefillSpeed(1.0, 0.1, 0.01)
    assert speed.prefill_s(10, 0) == pytest.approx(1.0 + 1.0 + 0.01 * 10 * 5)
    assert speed.prefill_s(10, 100) == pytest.approx(1.0 + 1.0 + 0.01 * 10 * 105)


@given(first=st.integers(0, 5000), second=st.integers(0, 5000), cached=st.integers(0, 5000))
def test_a_prefill_in_two_parts_costs_one_more_start(first: int, second: int, cached: int) -> None:
    whole = TRUE.prefill_s(first + second, cached)
    parts = TRUE.prefill_s(first, cached) + TRUE.prefill_s(second, cached + first)
    assert parts == pytest.approx(whole + TRUE.a_s)


def test_slo_grows_with_the_prompt() -> None:
    assert Slo(2.0).for_prompt(100_000) == 2.0
    assert Slo(2.0, 0.5).for_prompt(4000) == 4.0


@pytest.mark.parametrize(
    ("seen", "wait_s", "feasible", "load_s"),
    [
        # A feasible request waits for feasible work only.
        (view(feasible_s=1.0, infeasible_s=50.0), 1.0, True, 51.0),
        # One that misses its SLO behind that waits for all.
        (view(feasible_s=4.5, infeasible_s=50.0), 54.5, False, 54.5),
        # What runs is done in part, and waited for, whatever its class.
        (view(feasible_s=3.0, running=RunningPrefill(2.0, 1.5, True)), 1.5, True, 1.5),
        (view(1.0, 10.0, running=RunningPrefill(8.0, 6.0, False)), 3.0, True, 5.0),
        (view(1.0, 10.0, running=RunningPrefill(8.0, 1.0, False)), 10.0, False, 10.0),
        # Who is in time waits only until it gives way, whatever it was booked as.
        (view(1.0, 10.0, running=RunningPrefill(8.0, 1.0, False, 0.5)), 1.5, True, 10.0),
        (view(1.0, 10.0, running=RunningPrefill(8.0, 7.8, False, 0.5)), 1.2, True, 3.2),
        (view(5.0, 10.0, running=RunningPrefill(4.0, 1.0, True, 0.5)), 1.5, True, 14.0),
        (view(3.6, 10.0, running=RunningPrefill(8.0, 1.0, False, 0.5)), 12.6, False, 12.6),
        # Charges released before telemetry says that it ended.
        (view(0.5, 0.0, running=RunningPrefill(8.0, 0.1, True, 0.0)), 0.0, True, 0.4),
        # An overrun does not count below zero, nor a clock that runs backwards.
        (view(feasible_s=2.0, running=RunningPrefill(2.0, 9.0, True)), 0.0, True, 0.0),
        (view(feasible_s=2.0, running=RunningPrefill(2.0, -1.0, True)), 2.0, True, 2.0),
        # Charges released before telemetry says that the prefill ended.
        (view(feasible_s=0.5, running=RunningPrefill(2.0, 1.0, True)), 0.0, True, 0.0),
        # A held engine costs one SLO more and is never in time.
        (view(feasible_s=1.0, held=True), 6.0, False, 6.0),
    ],
)
def test_estimate(seen: InstanceView, wait_s: float, feasible: bool, load_s: float) -> None:
    got = estimate(request(), seen, RULE)
    assert got.wait_s == pytest.approx(wait_s)
    assert got.feasible is feasible
    assert got.load_s == pytest.approx(load_s)
    assert got.own_s == pytest.approx(1.0)
    assert got.ttft_s == pytest.approx(wait_s + 1.0)
    assert got.score == pytest.approx(wait_s + 3.0)


RUNNING = st.none() | st.builds(
    RunningPrefill, SECONDS, st.floats(-1.0, 100.0), st.booleans(), st.none() | st.floats(0, 9)
)


@given(
    feasible_s=SECONDS,
    infeasible_s=SECONDS,
    owned=st.integers(0, 40),
    running=RUNNING,
    held=st.booleans(),
    more_s=SECONDS,
)
def test_estimates_are_finite_and_grow_with_load(
    feasible_s: float,
    infeasible_s: float,
    owned: int,
    running: RunningPrefill | None,
    held: bool,
    more_s: float,
) -> None:
    if running is not None:
        # What runs is booked, in its class.
        feasible_s += running.cost_s if running.feasible else 0.0
        infeasible_s += 0.0 if running.feasible else running.cost_s
    got = estimate(request(), view(feasible_s, infeasible_s, owned, running, held), RULE)
    assert 0.0 <= got.wait_s < math.inf and 0.0 < got.own_s < math.inf
    assert got.ttft_s == pytest.approx(got.wait_s + got.own_s)
    if got.feasible:
        assert got.ttft_s <= 5.0 + 1e-9
    if running is not None:
        stays = view(feasible_s, infeasible_s, owned, replace(running, gives_way_s=None), held)
        assert estimate(request(), stays, RULE).wait_s >= got.wait_s - 1e-9
    busier = estimate(request(), view(feasible_s + more_s, infeasible_s, owned, running, held), RULE)
    assert busier.wait_s >= got.wait_s - 1e-9
    warmer = estimate(request(), view(feasible_s, infeasible_s, owned + 1, running, held), RULE)
    assert warmer.own_s <= got.own_s


def samples(speed: PrefillSpeed, count: int, noise: float, seed: int) -> list[tuple[int, int, float]]:
    """Prefills as traffic has them: many short and cached, some long."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        uncached = int(2 ** chance.uniform(4, 15))
        cached = chance.choice([0, 0, chance.randrange(30_000)])
        made.append(
            (uncached, cached, speed.prefill_s(uncached, cached) * chance.uniform(1 - noise, 1 + noise))
        )
    return made


def fitted(seen: list[tuple[int, int, float]], fit: PrefillFit = PrefillFit()) -> PrefillFit:  # noqa: B008 - a value
    for uncached, cached, seconds in seen:
        fit = fit.observe(uncached, cached, seconds)
    return fit


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "speed",
    [TRUE, PrefillSpeed(0.005, 15e-6, 2e-10), PrefillSpeed(0.2, 3e-3, 1e-7)],
    ids=["7b", "fast", "slow"],
)
def test_the_fit_recovers_the_speed_from_noisy_samples(speed: PrefillSpeed, seed: int) -> None:
    fit = fitted(samples(speed, 400, 0.1, seed))
    assert fit.speed.a_s == pytest.approx(speed.a_s, rel=0.15)
    assert fit.speed.b_s_per_token == pytest.approx(speed.b_s_per_token, rel=0.15)
    assert fit.speed.c_s_per_token2 == pytest.approx(speed.c_s_per_token2, rel=0.25)
    for uncached, cached in [(16, 0), (512, 20_000), (4096, 0), (30_000, 0)]:
        assert fit.speed.prefill_s(uncached, cached) == pytest.approx(
            speed.prefill_s(uncached, cached), rel=0.1
        )
    assert fit.residual < 0.1


def test_exact_samples_are_recovered_exactly() -> None:
    fit = fitted(samples(TRUE, 300, 0.0, 1))
    assert fit.speed.a_s == pytest.approx(TRUE.a_s, rel=0.01)
    assert fit.speed.b_s_per_token == pytest.approx(TRUE.b_s_per_token, rel=0.01)
    assert fit.speed.c_s_per_token2 == pytest.approx(TRUE.c_s_per_token2, rel=0.01)


def test_without_samples_the_prior_stands() -> None:
    assert PrefillFit().speed == DEFAULT_SPEED
    assert PrefillFit(prior=TRUE).speed is TRUE
    assert SpeedTracker(PrefillFit(prior=TRUE)).speed() == TRUE


def test_a_fit_is_what_it_has_seen_and_its_speed_follows() -> None:
    fit = fitted(samples(TRUE, 5, 0.1, 1))
    assert fit == fitted(samples(TRUE, 5, 0.1, 1))
    assert replace(fit) == fit and replace(fit).speed == fit.speed
    assert replace(fit, num_samples=0).speed == fit.prior


def test_one_sample_gives_the_magnitude_and_the_prior_the_shape() -> None:
    # 1,000 tokens took three times as long as the prior says: so will everything, until more is seen.
    speed = PrefillFit().observe(1000, 0, 3 * DEFAULT_SPEED.prefill_s(1000, 0)).speed
    for uncached, cached in [(16, 0), (1000, 0), (30_000, 0), (500, 20_000)]:
        expected_s = 3 * DEFAULT_SPEED.prefill_s(uncached, cached)
        assert speed.prefill_s(uncached, cached) == pytest.approx(expected_s, rel=0.01)


@pytest.mark.parametrize("times", [0.1, 1.0, 30.0])
def test_ten_samples_outweigh_the_prior_of_any_magnitude(times: float) -> None:
    prior = PrefillSpeed(times * TRUE.a_s, times * TRUE.b_s_per_token, times * TRUE.c_s_per_token2)
    fit = fitted(samples(TRUE, 10, 0.05, 2), PrefillFit(prior=prior))
    for uncached, cached in [(1000, 0), (30_000, 0), (500, 20_000)]:
        assert fit.speed.prefill_s(uncached, cached) == pytest.approx(
            TRUE.prefill_s(uncached, cached), rel=0.2
        )


@given(
    st.lists(
        st.tuples(
            st.integers(0, 200_000),
            st.integers(0, 200_000),
            st.floats(0.0, 1000.0, allow_nan=False),
        ),
        max_size=40,
    )
)
def test_no_term_is_ever_negative(seen: list[tuple[int, int, float]]) -> None:
    tracker = SpeedTracker()
    for uncached, cached, seconds in seen:
        tracker = tracker.observe(uncached, cached, seconds)
        speed = tracker.speed()
        for term in (speed.a_s, speed.b_s_per_token, speed.c_s_per_token2):
            assert 0.0 <= term < math.inf
        assert 0.0 <= tracker.fit.residual <= 10.0
        assert 0.01 <= tracker.factor <= 100.0 * (1 + 1e-9)


def test_prefills_that_take_less_for_more_tokens_pin_terms_to_zero() -> None:
    fit = fitted([(100, 0, 1.0), (10_000, 0, 0.1)] * 50)
    assert fit.speed.b_s_per_token == 0.0 or fit.speed.c_s_per_token2 == 0.0


def test_the_factor_reacts_to_a_tenfold_slow_down_within_a_handful_of_prefills() -> None:
    tracker = SpeedTracker()
    for uncached, cached, seconds in samples(TRUE, 400, 0.1, 1):
        tracker = tracker.observe(uncached, cached, seconds)
    assert tracker.factor == pytest.approx(1.0, abs=0.15)
    before_s = tracker.speed().prefill_s(4096, 0)
    expected = []
    for uncached, cached, seconds in samples(TRUE, 8, 0.1, 2):
        tracker = tracker.observe(uncached, cached, 10 * seconds)
        expected.append(tracker.speed().prefill_s(4096, 0) / before_s)
    assert expected[1] > 2.5
    assert expected[4] > 5.0
    assert expected[7] > 7.0
    # Back to normal as quickly.
    for uncached, cached, seconds in samples(TRUE, 8, 0.1, 3):
        tracker = tracker.observe(uncached, cached, seconds)
    assert tracker.speed().prefill_s(4096, 0) / before_s < 2.0


def test_the_fit_takes_a_lasting_change_over_from_the_factor() -> None:
    tracker = SpeedTracker()
    for factor, count in ((1.0, 300), (3.0, 3000)):
        for uncached, cached, seconds in samples(TRUE, count, 0.05, 4):
            tracker = tracker.observe(uncached, cached, factor * seconds)
    assert tracker.factor == pytest.approx(1.0, abs=0.1)
    assert tracker.fit.speed.prefill_s(4096, 0) == pytest.approx(3 * TRUE.prefill_s(4096, 0), rel=0.1)


def test_an_overrun_counts_at_once_but_is_bounded() -> None:
    tracker = SpeedTracker(PrefillFit(prior=TRUE))
    assert tracker.speed(overrun=0.2) == TRUE
    assert tracker.speed(overrun=4.0).prefill_s(100, 0) == pytest.approx(4 * TRUE.prefill_s(100, 0))
    assert tracker.speed(overrun=1e9).prefill_s(100, 0) == pytest.approx(100 * TRUE.prefill_s(100, 0))


def test_the_ratio_follows_prompts_and_stays_within_what_text_can_be() -> None:
    assert TokenRatio().bytes_per_token == 4.0
    ratio = TokenRatio().observe(3000, 1000)
    assert ratio.bytes_per_token == 3.0
    assert ratio.observe(0, 10) == ratio.observe(10, 0) == ratio
    assert TokenRatio().observe(10**9, 1).bytes_per_token == 64.0
    assert TokenRatio().observe(1, 10**9).bytes_per_token == 0.25
    for _ in range(2000):
        ratio = ratio.observe(6000, 1000)
    assert ratio.bytes_per_token == pytest.approx(6.0, rel=0.01)
