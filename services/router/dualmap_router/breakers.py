"""Breakers: leave out for a while an instance that breaks one request after the other, though its worker calls it well.

Theory of operation. An engine can answer `/health` and `/metrics` and break every generation. It then looks idle, so
that decisions prefer it, and each request pays an attempt there or gets its error. A breaker opens after so many
failures in a row: a connection that broke, an answer that is not HTTP, a 5xx. Requests that died together are one
failure: what was sent before the last one does not count. An answer closes it, a stream as soon as it is well under
way; 4xx and 429 are answers. While it is open nothing is sent there; then one request tries the instance, and if that
fails the breaker is open for twice as long, with jitter, so that the routers of a fleet do not try at once. Where more
than half of those that could serve a request are left out, it is not the instances: nobody is. Each router has its own.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

log = logging.getLogger(__name__)

_LONGEST_S = 60.0
_JITTER = 0.25
"""Of a pause, either way."""


@dataclass(slots=True)
class _Breaker:
    """What is known of an instance that has failed and not answered since."""

    failures: int = 0
    last_s: float = 0.0
    """When the last of them was seen."""
    opened: int = 0
    """How often in a row."""
    until_s: float = 0.0


class Breakers:
    """One per instance that has failed; times are seconds of `time.monotonic()`."""

    def __init__(
        self,
        failures: int,
        pause_s: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Open after so many `failures` in a row, for `pause_s` the first time; never if that is 0."""
        self._failures = failures
        self._pause_s = pause_s
        self._clock = clock
        self._chance = chance
        self._breakers: dict[str, _Breaker] = {}
        self._generations: dict[str, int] = {}

    @property
    def num_open(self) -> int:
        """Instances that nothing is sent to now."""
        now_s = self._clock()
        return sum(breaker.until_s > now_s for breaker in self._breakers.values())

    def left_out(self, usable: Set[str]) -> Set[str]:
        """Those of the usable instances that nothing is to be sent to."""
        if not self._breakers:
            return frozenset()
        now_s = self._clock()
        out = {name for name, breaker in self._breakers.items() if breaker.until_s > now_s and name in usable}
        return out if 2 * len(out) <= len(usable) else frozenset()

    def sent(self, instance: str) -> float:
        """A request leaves for an instance; returns when. If it tries a broken one, it is the only one for now."""
        now_s = self._clock()
        breaker = self._breakers.get(instance)
        if breaker is not None and breaker.opened and breaker.until_s <= now_s:
            breaker.until_s = now_s + self._pause(breaker)
        return now_s

    def answered(self, instance: str) -> None:
        """An instance has answered a request."""
        if self._breakers:
            breaker = self._breakers.pop(instance, None)
            if breaker is not None and breaker.opened:
                log.info("breaker.closed", extra={"instance": instance})

    def failed(self, instance: str, sent_s: float) -> None:
        """A request that was sent at `sent_s` broke there."""
        if not self._pause_s:
            return
        breaker = self._breakers.setdefault(instance, _Breaker())
        if sent_s < breaker.last_s:
            return
        breaker.last_s = self._clock()
        breaker.failures += 1
        if breaker.failures >= self._failures:
            pause_s = self._pause(breaker)
            breaker.until_s = breaker.last_s + pause_s
            breaker.opened += 1
            log.warning(
                "breaker.opened",
                extra={"instance": instance, "failures": breaker.failures, "for_s": round(pause_s, 1)},
            )

    def keep(self, generations: Mapping[str, int]) -> None:
        """Forget who has left the pool or began anew: another engine is innocent of what the last one broke."""
        for name in list(self._breakers):
            if name not in generations or generations[name] != self._generations.get(name):
                del self._breakers[name]
        self._generations = dict(generations)

    def _pause(self, breaker: _Breaker) -> float:
        longest_s = max(_LONGEST_S, self._pause_s)
        pause_s = min(self._pause_s * 2.0 ** min(breaker.opened, 16), longest_s)
        return pause_s * (1.0 + _JITTER * (2.0 * self._chance() - 1.0))
