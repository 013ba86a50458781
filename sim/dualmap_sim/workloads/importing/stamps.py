"""Times as logs write them: epoch seconds, milliseconds and finer, seconds from a start, ISO 8601."""

import math
from datetime import UTC, datetime

from dualmap_sim.workloads.errors import LineError

_MS_FROM = 1e11
"""As seconds that is the year 5138, as milliseconds 1973."""


def epoch_ms(stamp: object) -> float:
    """A stamp in milliseconds; one without a time zone is taken for UTC; LineError when it is no time."""
    if isinstance(stamp, str):
        try:
            stamp = float(stamp)
        except ValueError:
            return _iso_ms(str(stamp))
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        raise LineError(f"not a time: {_short(stamp)}")
    try:
        value = float(stamp)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or abs(value) >= _MS_FROM * 1e9:
        raise LineError(f"not a time: {_short(stamp)}")
    # Seconds, milliseconds, microseconds, nanoseconds: each a thousand times the one before.
    unit = 1000.0
    while abs(value) >= _MS_FROM * (1000.0 / unit):
        unit /= 1000.0
    return value * unit


def _iso_ms(text: str) -> float:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise LineError(f"not a time: {_short(text)}") from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000


def _short(what: object) -> str:
    return repr(what)[:40]
