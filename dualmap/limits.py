"""What a tenant may ask for at once and per second, as one number per tenant: the generic cell rate algorithm.

A bucket of `burst` requests fills at `requests_per_s`. All there is to know of it is when it will be full: a request
moves that by one interval, and is let in if that leaves it within one bucket's time from now.
The Redis function `enter` does the same for all routers; tests/wire/test_limits.py holds the two equal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tenant; 0 for no limit."""

    requests_per_s: float = 0.0
    burst: int = 1
    """Requests that may come at once after a pause."""
    concurrency: int = 0

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.requests_per_s > 0.0 or self.concurrency > 0

    def share(self, parts: int) -> "Limits":
        """What one of so many routers may let in by itself; never nothing at all."""
        if parts <= 1:
            return self
        return Limits(
            self.requests_per_s / parts,
            max(1, self.burst // parts),
            max(1, self.concurrency // parts) if self.concurrency else 0,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """What a bucket says to one request."""

    full_at_s: float
    """When the bucket is full, if nothing more is taken."""
    wait_s: float
    """Until the request would be let in; 0 if it is."""
    remaining: int


def take(full_at_s: float, now_s: float, limits: Limits) -> Taken:
    """Take one request out of a bucket that is full at `full_at_s`."""
    interval_s = 1.0 / limits.requests_per_s
    room_s = limits.burst * interval_s
    # No bucket is more than empty: one that seems to be was written before the clock was set back.
    after_s = min(max(full_at_s, now_s), now_s + room_s) + interval_s
    wait_s = after_s - room_s - now_s
    # Half an interval's millionth is rounding, not a request too many.
    if wait_s > interval_s * 5e-7:
        return Taken(full_at_s, wait_s, 0)
    return Taken(after_s, 0.0, int((now_s + room_s - after_s) / interval_s + 1e-6))
