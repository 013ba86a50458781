"""What a change of the pool does to the prefixes: how many get other candidates, before anybody acts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dualmap.hash_ring import RingPair


@dataclass(frozen=True, slots=True)
class RingChange:
    """Two pools compared over a sample of prefix keys. All shares are of keys, 0 to 1."""

    changed_share: float
    """Keys whose pair of candidates differs."""
    cold_share: float
    """Keys none of whose candidates was one before: whatever was cached for them is out of reach."""
    before: Mapping[str, float]
    """Of each instance, the keys that have it as a candidate: these shares add up to 2."""
    after: Mapping[str, float]


def compare_rings(before: Mapping[str, float], after: Mapping[str, float], keys: Iterable[int]) -> RingChange:
    """What becomes of prefix keys when instance weights change; EmptyPoolError if one pool is empty."""
    old_rings, new_rings = RingPair(before), RingPair(after)
    num_keys = changed = cold = 0
    old_count: Counter[str] = Counter()
    new_count: Counter[str] = Counter()
    for key in keys:
        old, new = old_rings.candidates(key), new_rings.candidates(key)
        num_keys += 1
        changed += set(old) != set(new)
        cold += not set(old) & set(new)
        old_count.update(old)
        new_count.update(new)
    most = max(num_keys, 1)
    return RingChange(
        changed_share=changed / most,
        cold_share=cold / most,
        before={name: old_count[name] / most for name in sorted(before)},
        after={name: new_count[name] / most for name in sorted(after)},
    )
