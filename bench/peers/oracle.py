"""The oracle's choice: it knows every queue and every cache, and picks the smallest expected TTFT.

First come, first served in every engine, as engines do it: so what is ahead of a request is what was sent there
before and has not begun to answer, and its cache will hold what was sent there before, as far as there is room. What
no router without queues can have is a second thought: it decides when a request comes, and never again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dualmap_sim.engine import EngineProfile
from dualmap_sim.fleet.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a request goes, and what is expected there; seconds are model seconds."""

    index: int
    own_s: float
    wait_s: float
    cached_tokens: int

    @property
    def ttft_s(self) -> float:
        """Until its first token."""
        return self.wait_s + self.own_s


@dataclass(slots=True)
class _Queue:
    """The requests of one engine that have not begun to answer, in order."""

    cache: PrefixCache
    ahead: dict[str, float] = field(default_factory=dict)
    """Prefill seconds by request."""
    since_s: float = 0.0
    """When the first of them got the engine to itself."""

    def wait_s(self, now_s: float) -> float:
        if not self.ahead:
            return 0.0
        first, *others = self.ahead.values()
        return max(first - (now_s - self.since_s), 0.0) + sum(others)


class Oracle:
    """Follows engines by what it sent them and by when they began to answer."""

    def __init__(self, profile: EngineProfile, num_engines: int) -> None:
        self._profile = profile
        self._queues = [_Queue(PrefixCache(profile.num_kv_blocks)) for _ in range(num_engines)]

    def place(self, request_id: str, tokens: int, blocks: Sequence[int], now_s: float) -> Placed:
        """Choose for a request of so many tokens, with an id per full block of its prompt; ties go to the first."""
        options = (self._option(index, tokens, blocks, now_s) for index in range(len(self._queues)))
        best = min(options, key=lambda option: option.ttft_s)
        queue = self._queues[best.index]
        if not queue.ahead:
            queue.since_s = now_s
        queue.ahead[request_id] = best.own_s
        self._keep(queue.cache, blocks)
        return best

    def answered(self, request_id: str, index: int, now_s: float) -> None:
        """A request's first token came, or it is over without one: the next has the engine."""
        queue = self._queues[index]
        if queue.ahead.pop(request_id, None) is not None:
            queue.since_s = now_s

    def _option(self, index: int, tokens: int, blocks: Sequence[int], now_s: float) -> Placed:
        queue, size = self._queues[index], self._profile.block_size
        # The last token is always computed.
        cached = queue.cache.match(blocks[: (tokens - 1) // size]) * size
        return Placed(index, self._profile.prefill_s(tokens - cached, cached), queue.wait_s(now_s), cached)

    def _keep(self, cache: PrefixCache, blocks: Sequence[int]) -> None:
        num_cached = cache.match(blocks)
        lease = cache.acquire(blocks, num_cached, len(blocks))
        if lease is not None:
            cache.store(lease, blocks[num_cached:])
            cache.release(lease)
