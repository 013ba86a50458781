"""Expected time to first token, and the fit of an instance's prefill speed from what it was seen to do."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypeAlias

from dualmap.types import ChoiceRequest, ChoiceRule, Estimate, InstanceView, PrefillSpeed

DEFAULT_SPEED = PrefillSpeed(a_s=0.015, b_s_per_token=90e-6, c_s_per_token2=2.7e-9)
"""What an instance is taken for until it has been seen to prefill: about 10,000 tokens a second."""

_TERM_SCALE = (1.0, 1e-4, 1e-8)
_HALF_LIFE_SAMPLES = 200.0
_DECAY = 0.5 ** (1.0 / _HALF_LIFE_SAMPLES)
_PRIOR_WEIGHT = 0.005
_MIN_SAMPLE_S = 1e-4
_FACTOR_GAIN = 0.25
_MAX_FACTOR = 100.0
_FACTOR_HALF_LIFE_S = 5.0
_TRUSTED_SAMPLES = 4


def split_prompt(request: ChoiceRequest, owned_chunks: int) -> tuple[int, int]:
    """(uncached, cached) tokens of a prompt; the last token is always computed, as engines do."""
    cached = min(int(owned_chunks * request.chunk_tokens), request.prompt_tokens - 1)
    cached = max(cached, 0)
    return max(request.prompt_tokens - cached, 1), cached


def estimate(request: ChoiceRequest, view: InstanceView, rule: ChoiceRule) -> Estimate:
    """Wait, own prefill, TTFT and score of a request on one instance.

    A request that meets its SLO waits for feasible work only, since the queue serves infeasible work
    after it (`queue_order`); and for the prefill that runs, unless that gives way (`preempt`). An engine
    that holds admissions is expected to make it wait for one SLO more.
    """
    feasible_s, infeasible_s, blocking_s = view.feasible_s, view.infeasible_s, 0.0
    running = view.running
    if running is not None:
        done_s = min(max(running.elapsed_s, 0.0), running.cost_s)
        left_s = running.cost_s - done_s
        if running.feasible:
            feasible_s -= done_s
        else:
            infeasible_s -= done_s
            blocking_s = left_s
        if running.gives_way_s is not None:
            if running.feasible:
                # Booked as feasible, late by now: it will wait behind the feasible ones like any other.
                left_s = min(left_s, max(feasible_s, 0.0))
                feasible_s, infeasible_s = feasible_s - left_s, infeasible_s + left_s
            blocking_s = min(left_s, running.gives_way_s)
    elif feasible_s <= 0.0:
        # Telemetry has not said what runs, but an engine with booked work is never idle.
        blocking_s = infeasible_s
    feasible_s, infeasible_s = max(feasible_s, 0.0), max(infeasible_s, 0.0)

    uncached, cached = split_prompt(request, view.owned_chunks)
    own_s = view.speed.prefill_s(uncached, cached)
    wait_s = feasible_s + blocking_s
    feasible = wait_s + own_s <= request.slo_s and not view.held
    if not feasible:
        wait_s = feasible_s + infeasible_s
    held_s = request.slo_s if view.held else 0.0
    return Estimate(
        instance=view.instance,
        wait_s=wait_s + held_s,
        own_s=own_s,
        ttft_s=wait_s + held_s + own_s,
        score=wait_s + held_s + (1.0 + rule.lambda_own) * own_s,
        feasible=feasible,
        owned_chunks=view.owned_chunks,
        load_s=feasible_s + infeasible_s + held_s,
    )


Prefill: TypeAlias = tuple[int, int]
"""(uncached, cached) tokens of one prefill."""


@dataclass(frozen=True, slots=True)
class PrefillFit:
    """Decayed least squares of a, b, c over observed prefills; `speed` is never negative in any term.

    A sample is a group of prefills and the seconds they took together: engines batch short prefills into one
    step, whose first tokens come at once, and the model is linear, so a group's terms add up. Samples are
    weighted by 1/seconds^2, which minimises the relative error: a short cached prefill matters to a decision
    as much as a long cold one. `prior` stands in until samples outweigh it.
    """

    prior: PrefillSpeed = DEFAULT_SPEED
    num_samples: int = 0
    moments: tuple[float, ...] = (0.0,) * 9
    """Upper triangle of X'WX (6 values, row by row), then X'Wy (3 values)."""
    residual: float = 0.0
    """Decayed mean of |predicted - observed| / observed."""
    speed: PrefillSpeed = field(init=False, repr=False, compare=False)
    """The fitted speed; the prior where nothing was observed."""

    def __post_init__(self) -> None:
        # Solved once: decisions read it many times between two samples.
        object.__setattr__(self, "speed", self._solved())

    def observe(self, uncached_tokens: int, cached_tokens: int, seconds: float) -> "PrefillFit":
        """The fit after one more prefill of `uncached_tokens` on top of `cached_tokens`."""
        return self.observe_group([(uncached_tokens, cached_tokens)], seconds)

    def observe_group(self, prefills: Sequence[Prefill], seconds: float) -> "PrefillFit":
        """The fit after a group of prefills that took `seconds` together."""
        y = max(seconds, _MIN_SAMPLE_S)
        predicted = predict_s(self.speed, prefills)
        terms = [_terms(uncached, cached) for uncached, cached in prefills]
        x = tuple(sum(term[i] for term in terms) for i in range(3))
        # The larger of the two: one sample that is absurdly short must not outweigh all others.
        weight = 1.0 / max(y, predicted, _MIN_SAMPLE_S) ** 2
        m = self.moments
        added = (
            x[0] * x[0], x[0] * x[1], x[0] * x[2], x[1] * x[1], x[1] * x[2], x[2] * x[2],
            x[0] * y, x[1] * y, x[2] * y,
        )  # fmt: skip
        moments = tuple(_DECAY * old + weight * new for old, new in zip(m, added, strict=True))
        keep = min(self.num_samples / (self.num_samples + 1.0), _DECAY)
        return replace(
            self,
            num_samples=self.num_samples + 1,
            moments=moments,
            residual=keep * self.residual + (1.0 - keep) * min(abs(predicted - y) / y, 10.0),
        )

    def _solved(self) -> PrefillSpeed:
        if self.num_samples == 0:
            return self.prior
        prior = (
            self.prior.a_s / _TERM_SCALE[0],
            self.prior.b_s_per_token / _TERM_SCALE[1],
            self.prior.c_s_per_token2 / _TERM_SCALE[2],
        )
        a, b, c = _solve_non_negative(self.moments, prior)
        return PrefillSpeed(a * _TERM_SCALE[0], b * _TERM_SCALE[1], c * _TERM_SCALE[2])


def predict_s(speed: PrefillSpeed, prefills: Iterable[Prefill]) -> float:
    """Seconds that prefills take one after the other."""
    return sum(speed.prefill_s(uncached, cached) for uncached, cached in prefills)


def _terms(uncached_tokens: int, cached_tokens: int) -> tuple[float, float, float]:
    """The regressors, scaled so that typical coefficients are near one."""
    u = float(uncached_tokens)
    return (1.0 * _TERM_SCALE[0], u * _TERM_SCALE[1], u * (cached_tokens + u / 2) * _TERM_SCALE[2])


def _solve_non_negative(moments: tuple[float, ...], prior: tuple[float, ...]) -> tuple[float, float, float]:
    """Ridge solution pulled towards the prior; negative terms are pinned to zero, the rest solved again."""
    xx = [
        [moments[0], moments[1], moments[2]],
        [moments[1], moments[3], moments[4]],
        [moments[2], moments[4], moments[5]],
    ]
    xy = list(moments[6:9])
    prior = _scaled(prior, xx, xy)
    for i in range(3):
        # The prior weighs as a small part of one sample; a term that no sample moves keeps its prior.
        ridge = _PRIOR_WEIGHT / max(prior[i] * prior[i], 1e-6)
        xx[i][i] += ridge
        xy[i] += ridge * prior[i]
    active = [0, 1, 2]
    while active:
        solution = _solve([[xx[i][j] for j in active] for i in active], [xy[i] for i in active])
        worst = min(range(len(active)), key=lambda k: solution[k])
        if solution[worst] >= 0.0:
            result = [0.0, 0.0, 0.0]
            for k, i in enumerate(active):
                result[i] = solution[k]
            return (result[0], result[1], result[2])
        del active[worst]
    return (0.0, 0.0, 0.0)


def _scaled(prior: tuple[float, ...], xx: list[list[float]], xy: list[float]) -> tuple[float, ...]:
    """The prior at the magnitude of the samples, so that it pulls as little on a slow engine as on a fast one."""
    expected = sum(prior[i] * xx[i][j] * prior[j] for i in range(3) for j in range(3))
    if expected <= 0.0:
        return prior
    factor = sum(prior[i] * xy[i] for i in range(3)) / expected
    factor = min(max(factor, 1.0 / _MAX_FACTOR), _MAX_FACTOR)
    return tuple(factor * term for term in prior)


def _solve(matrix: list[list[float]], rhs: list[float]) -> list[float]:
    """Gaussian elimination with pivoting of a system of at most three equations."""
    n = len(rhs)
    rows = [[*matrix[i], rhs[i]] for i in range(n)]
    for col in range(n):
        pivot = max(range(col, n), key=lambda r: abs(rows[r][col]))
        rows[col], rows[pivot] = rows[pivot], rows[col]
        for r in range(col + 1, n):
            factor = rows[r][col] / rows[col][col]
            for k in range(col, n + 1):
                rows[r][k] -= factor * rows[col][k]
    solution = [0.0] * n
    for r in reversed(range(n)):
        known = sum(rows[r][k] * solution[k] for k in range(r + 1, n))
        solution[r] = (rows[r][n] - known) / rows[r][r]
    return solution


@dataclass(frozen=True, slots=True)
class SpeedTracker:
    """An instance's speed now: the long fit times a quick factor for what changed in the last few prefills.

    The fit averages over hundreds of prefills, so an engine that turns tenfold slower would look healthy
    for minutes; the factor follows within a few, and a prefill that overruns its estimate counts at once.
    """

    fit: PrefillFit = PrefillFit()
    log_factor: float = 0.0

    def prefilled(self, prefills: Sequence[Prefill], seconds: float) -> "SpeedTracker":
        """After a group of prefills, with the cached tokens that were expected: moves the quick factor."""
        expected_s = max(predict_s(self.fit.speed, prefills), _MIN_SAMPLE_S)
        ratio = min(max(seconds / expected_s, 1.0 / _MAX_FACTOR), _MAX_FACTOR)
        return replace(self, log_factor=self.log_factor + _FACTOR_GAIN * (math.log(ratio) - self.log_factor))

    def confirmed(self, prefills: Sequence[Prefill], seconds: float) -> "SpeedTracker":
        """When the engine has said how much was cached: moves the fit."""
        return replace(self, fit=self.fit.observe_group(prefills, seconds))

    def observe(self, uncached_tokens: int, cached_tokens: int, seconds: float) -> "SpeedTracker":
        """Both at once, where the cached tokens are known from the start."""
        prefills = [(uncached_tokens, cached_tokens)]
        return self.prefilled(prefills, seconds).confirmed(prefills, seconds)

    @property
    def factor(self) -> float:
        """How many times longer than the fit says prefills took lately."""
        return math.exp(self.log_factor)

    def speed(self, overrun: float = 1.0, idle_s: float = 0.0) -> PrefillSpeed:
        """The speed to expect.

        `overrun` is elapsed over fitted seconds of a prefill that still runs. `idle_s` is how long none was
        seen: the factor fades, since an instance that nobody tries could never show that it recovered.
        """
        # Never below 1: to have become faster is for the fit to find out, a hasty guess overfills the engine.
        factor = max(1.0, min(overrun, _MAX_FACTOR))
        if self.log_factor > 0.0:
            factor = max(factor, math.exp(self.log_factor * 0.5 ** (idle_s / _FACTOR_HALF_LIFE_S)))
        base = self.fit.speed
        if factor == 1.0:
            return base
        return PrefillSpeed(base.a_s * factor, base.b_s_per_token * factor, base.c_s_per_token2 * factor)


def typical_speed(speeds: Iterable[PrefillSpeed]) -> PrefillSpeed:
    """The pool's median in each term; the default where nothing is known.

    Stands for instances that have prefilled little: a prior that were slower than the pool would keep them
    from ever being tried.
    """
    known = list(speeds)
    if not known:
        return DEFAULT_SPEED
    return PrefillSpeed(
        median(speed.a_s for speed in known),
        median(speed.b_s_per_token for speed in known),
        median(speed.c_s_per_token2 for speed in known),
    )


def believed_speeds(reported: Mapping[str, tuple[PrefillSpeed, int]]) -> dict[str, PrefillSpeed]:
    """Each instance's speed from (fitted speed, samples behind it); the typical one where samples are few."""
    typical = typical_speed(speed for speed, samples in reported.values() if samples >= _TRUSTED_SAMPLES)
    return {
        name: speed if samples >= _TRUSTED_SAMPLES else typical for name, (speed, samples) in reported.items()
    }


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """Bytes per token of a pool's prompts: a decayed ratio of sums, since workers see both."""

    prior: float = 4.0
    prompt_bytes: float = 0.0
    prompt_tokens: float = 0.0

    def observe(self, prompt_bytes: int, prompt_tokens: int) -> "TokenRatio":
        """The ratio after one more prompt."""
        if prompt_bytes <= 0 or prompt_tokens <= 0:
            return self
        return TokenRatio(
            self.prior,
            self.prompt_bytes * _DECAY + prompt_bytes,
            self.prompt_tokens * _DECAY + prompt_tokens,
        )

    @property
    def bytes_per_token(self) -> float:
        """Measured bytes per token, the prior while nothing was seen; kept within what text can be."""
        if self.prompt_tokens <= 0.0:
            return self.prior
        return min(max(self.prompt_bytes / self.prompt_tokens, 0.25), 64.0)
