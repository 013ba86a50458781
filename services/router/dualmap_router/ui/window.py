"""The last minutes in buckets: how many requests, of which kind, and how soon their first tokens came."""

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

BUCKET_S = 5.0
NUM_BUCKETS = 60
_BIN = math.log(1.1)
"""TTFTs are counted in bins that are a tenth apart, so a quantile is right within 5 %."""


@dataclass(slots=True)
class Bucket:
    """What ended, and whose first token came, within one span of `BUCKET_S`."""

    number: int
    requests: int = 0
    failed: int = 0
    moves: int = 0
    met: int = 0
    missed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """As the decisions expected."""
    reasons: Counter[str] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)
    ttft_bins: Counter[int] = field(default_factory=Counter)

    def first_token(self, ttft_s: float, slo_s: float) -> None:
        """The first token of a stream came."""
        self.ttft_bins[bin_of(ttft_s)] += 1
        if ttft_s > slo_s:
            self.missed += 1
        else:
            self.met += 1

    def add(self, other: "Bucket") -> None:
        """Count another bucket's in."""
        for name in ("requests", "failed", "moves", "met", "missed", "prompt_tokens", "cached_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons.update(other.reasons)
        self.instances.update(other.instances)
        self.ttft_bins.update(other.ttft_bins)

    @property
    def attainment(self) -> float | None:
        """The share of first tokens within their objective; None without any."""
        return self.met / (self.met + self.missed) if self.met + self.missed else None

    def ttft_s(self, q: float) -> float | None:
        """A quantile of TTFT."""
        rank = math.ceil(q * self.ttft_bins.total())
        for number in sorted(self.ttft_bins):
            rank -= self.ttft_bins[number]
            if rank <= 0:
                return math.exp((number + 0.5) * _BIN)
        return None


class Window:
    """The last `NUM_BUCKETS` buckets that anything fell into."""

    def __init__(self) -> None:
        self._newest = Bucket(-1)
        self._buckets: deque[Bucket] = deque([self._newest], maxlen=NUM_BUCKETS)

    def at(self, now_s: float) -> Bucket:
        """The bucket of a moment, or the next after it that there is."""
        number = int(now_s // BUCKET_S)
        if number == self._newest.number:
            return self._newest
        if number > self._newest.number:
            self._newest = Bucket(number)
            self._buckets.append(self._newest)
            return self._newest
        # A stream's first token may have come a while before its end, and nothing else then: count it soon after.
        return next(bucket for bucket in self._buckets if bucket.number >= number)

    def read(self, now_s: float, first_tokens: Iterable[tuple[float, float, float]] = ()) -> list[Bucket]:
        """`NUM_BUCKETS` buckets up to now, the oldest first, the idle ones empty.

        `first_tokens` are (when, TTFT, objective) of requests that have not ended.
        """
        last = int(now_s // BUCKET_S)
        read = [Bucket(number) for number in range(last - NUM_BUCKETS + 1, last + 1)]
        for bucket in self._buckets:
            if bucket.number >= read[0].number:
                read[bucket.number - read[0].number].add(bucket)
        for at_s, ttft_s, slo_s in first_tokens:
            read[max(int(at_s // BUCKET_S) - read[0].number, 0)].first_token(ttft_s, slo_s)
        return read


def bin_of(ttft_s: float) -> int:
    """The bin of a TTFT."""
    return math.floor(math.log(max(ttft_s, 1e-4)) / _BIN)


def total(buckets: Iterable[Bucket]) -> Bucket:
    """All of them as one."""
    whole = Bucket(-1)
    for bucket in buckets:
        whole.add(bucket)
    return whole
