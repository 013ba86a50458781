"""Arrival patterns: how the rate of any workload varies around its mean.

A pattern is a sequence of stretches, each with a factor on the mean rate; arrivals within one are Poisson. Factors
average to 1 over time, so that a pattern changes when requests come and not how many.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.shape import Shape

_STEPS = 96


class Pattern(Protocol):
    """How the rate varies."""

    def stretches(self, rng: random.Random) -> Iterator[tuple[float, float]]:
        """(seconds, factor) of one stretch after the other, without end."""


@dataclass(frozen=True, slots=True)
class Steady:
    """One rate all along."""

    def stretches(self, rng: random.Random) -> Iterator[tuple[float, float]]:
        """A single stretch."""
        yield math.inf, 1.0


@dataclass(frozen=True, slots=True)
class Bursts(Shape):
    """On and off, for exponential times with the given means; on, the rate is `peak` times the mean."""

    on_s: float = 10.0
    off_s: float = 30.0
    peak: float = 3.0

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if not (self.on_s > 0 and self.off_s > 0):
            raise WorkloadError("on_s and off_s must be above 0")
        if self._off_factor < 0 or self.peak < 1:
            most = (self.on_s + self.off_s) / self.on_s
            raise WorkloadError(f"peak must be 1 to {most:g} with these times, not {self.peak}")

    @property
    def _off_factor(self) -> float:
        share = self.on_s / (self.on_s + self.off_s)
        return (1 - share * self.peak) / (1 - share)

    def stretches(self, rng: random.Random) -> Iterator[tuple[float, float]]:
        """Off comes first."""
        while True:
            yield rng.expovariate(1 / self.off_s), self._off_factor
            yield rng.expovariate(1 / self.on_s), self.peak


@dataclass(frozen=True, slots=True)
class Diurnal(Shape):
    """A sine wave around the mean rate; `swing` 0.8 goes from a fifth of it to nine fifths."""

    period_s: float = 600.0
    swing: float = 0.8

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if self.swing > 1 or not self.period_s > 0:
            raise WorkloadError("swing must be 0 to 1, period_s above 0")

    def stretches(self, rng: random.Random) -> Iterator[tuple[float, float]]:
        """Fine steps of the wave, from its mean upwards."""
        while True:
            for step in range(_STEPS):
                yield self.period_s / _STEPS, 1 + self.swing * math.sin(2 * math.pi * (step + 0.5) / _STEPS)


PATTERNS: dict[str, Pattern] = {"steady": Steady(), "bursts": Bursts(), "diurnal": Diurnal()}
"""The patterns by name, as they are without settings."""
