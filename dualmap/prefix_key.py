"""The prefix key: how many leading chunks the rings hash.

Too short, and one popular system prompt lands on two instances; too long, and nothing is shared. So a
prefix is *split* (the key goes one chunk deeper) while its share of recent requests is large. Counts decay
by count, not by time, with a half-life of about 400 requests: the rule is the same at 1 and at 1,000
requests per second. The walk stops at the first prefix that is not split, so a cold request touches one
count. Source: DESIGN section 5.2; the paper's rule (shares over 2/n and under 1/n) is its ancestor.

Counts live in two generations: when `ROTATE_EVERY` requests have passed, the older generation, untouched
for that long and decayed to under 3 %, is dropped. Memory is bounded without a sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

HALF_LIFE_REQUESTS = 400.0
DECAY = 0.5 ** (1.0 / HALF_LIFE_REQUESTS)
SPLIT_SHARE = 0.5
MIN_SPLIT_COUNT = 16.0
MAX_DEPTH = 32
ROTATE_EVERY = 2048
MAX_SPLITS = 1024


def key_depth(hashes: Sequence[int], splits: frozenset[int] | set[int]) -> int:
    """Chunks in the prefix key: one more than the leading run of split prefixes; 0 for no full chunk."""
    depth = 1
    for chunk in hashes[: MAX_DEPTH - 1]:
        if chunk not in splits:
            break
        depth += 1
    return min(depth, len(hashes))


def split_threshold(total: float, num_instances: int) -> float:
    """The decayed count above which a prefix is split, in a pool of `num_instances`."""
    return max(MIN_SPLIT_COUNT, SPLIT_SHARE * total / max(num_instances, 1))


@dataclass(slots=True)
class PrefixCounts:
    """Decayed counts of the prefixes that keys pass through, and the set of split prefixes."""

    seen: int = 0
    total: float = 0.0
    version: int = 0
    splits: set[int] = field(default_factory=set)
    current: dict[int, tuple[float, int]] = field(default_factory=dict)
    older: dict[int, tuple[float, int]] = field(default_factory=dict)

    def observe(self, hashes: Sequence[int], num_instances: int) -> bool:
        """Count one request along its key; true when the split set changed (and with it `version`)."""
        self.seen += 1
        self.total = self.total * DECAY + 1.0
        version = self.version
        # A request counts along the key it was routed by, whatever is unsplit below.
        depth = key_depth(hashes, self.splits)
        if self.seen % ROTATE_EVERY == 0:
            self._rotate(num_instances)
        threshold = split_threshold(self.total, num_instances)
        for chunk in hashes[:depth]:
            count = self._count(chunk) + 1.0
            self.current[chunk] = (count, self.seen)
            if chunk not in self.splits:
                if count > threshold and len(self.splits) < MAX_SPLITS:
                    self.splits.add(chunk)
                    self.version += 1
            elif count < threshold / 2:
                self.splits.discard(chunk)
                self.version += 1
        return self.version != version

    def _count(self, chunk: int) -> float:
        """The decayed count of one prefix."""
        count, at = self.current.get(chunk) or self.older.get(chunk) or (0.0, self.seen)
        return count * float(DECAY ** (self.seen - at))

    def _rotate(self, num_instances: int) -> None:
        """Drop the older generation, and unsplit what traffic has left behind."""
        threshold = split_threshold(self.total, num_instances)
        gone = [chunk for chunk in self.splits if self._count(chunk) < threshold / 2]
        for chunk in gone:
            self.splits.discard(chunk)
            self.version += 1
        self.older, self.current = self.current, {}
