"""The wall clocks of a system: whose differs, by how much, and what goes by it.

Each is read in one round trip, and taken to have been read in the middle of it: it cannot be further off than half of
the trip. Nothing else compares clocks, so that one that is wrong harms only what its own process reads off it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from dualmap_cli.doctor.finding import Finding

_APART_S = 1.0


class GoesBy(Enum):
    """What depends on a clock, by whose it is: (what, what to do)."""

    STORE = (
        "leases and bookings live by it alone: set forwards, all leases lapse at once; set back, the lease of whoever "
        "dies next lasts longer by as much, and no standby leads meanwhile",
        "Let NTP slew the store's clock, and never set it while the system runs.",
    )
    WORKER = (
        "its spans and log lines are dated by it, and so is its registration: a worker elsewhere that takes over its "
        "name by an earlier clock has to wait until this one's lease has lapsed",
        "Run NTP on its machine.",
    )
    ROUTER = (
        "API keys end by it, and its spans, exemplars and log lines are dated by it",
        "Run NTP on its machine.",
    )
    HERE = (
        "keys made here get their end by it, and the logs of others are read by it",
        "Run NTP on this machine.",
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    about: str
    goes_by: GoesBy
    ahead_s: float
    """Of this machine's clock."""
    within_s: float


class Clocks:
    """The clocks that were read, beside this machine's own."""

    def __init__(self) -> None:
        self._readings = [_Reading("this machine", GoesBy.HERE, 0.0, 0.0)]

    def read(self, about: str, goes_by: GoesBy, told_s: float, asked_s: float, answered_s: float) -> None:
        """Somebody told their time, between two times of this machine's clock."""
        middle_s, half_s = (asked_s + answered_s) / 2, abs(answered_s - asked_s) / 2
        self._readings.append(_Reading(about, goes_by, told_s - middle_s, half_s))

    def findings(self) -> Iterator[Finding]:
        """Those that are apart from the one that most agree with; nothing if no other has told."""
        if len(self._readings) < 2:
            return
        right = max(self._readings, key=self._agreeing)
        apart = [reading for reading in self._readings if not _agree(reading, right)]
        for reading in apart:
            ahead_s = reading.ahead_s - right.ahead_s
            what, do = reading.goes_by.value
            yield Finding(
                "warn",
                reading.about,
                f"its clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} "
                f"{_whose(right)} (within {reading.within_s + right.within_s:.3f} s): {what}",
                do,
            )
        if not apart:
            within_s = max(reading.within_s for reading in self._readings)
            others = ", ".join(reading.about for reading in self._readings[1:])
            yield Finding(
                "ok", "clocks", f"no second apart from this machine's (within {within_s:.3f} s): {others}"
            )

    def _agreeing(self, one: _Reading) -> int:
        """How many agree with it; the first of equals is this machine's."""
        return sum(_agree(one, other) for other in self._readings)


def _agree(one: _Reading, other: _Reading) -> bool:
    """Whether they may be less than a second apart."""
    return abs(one.ahead_s - other.ahead_s) <= _APART_S + one.within_s + other.within_s


def _whose(reading: _Reading) -> str:
    return f"{reading.about}'s" if reading.goes_by is not GoesBy.STORE else "the store's"
