"""The client-side oracle: whoever sends knows every queue and every cache, and picks the smallest TTFT.

First come, first served in every engine, as engines do it; so when all that was sent before is known, a request's
start is known when it is sent, and nothing has to be measured. What it cannot have is what a router in front of
queues can: it decides when a request comes, and never again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dualmap_sim.engine import EngineProfile
from dualmap_sim.fleet.prefix_cache import PrefixCache
from dualmap_sim.workloads.arrival import Arrival


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a request goes, and what is expected there; seconds are model seconds."""

    index: int
    ttft_s: float
    cached_tokens: int


class Oracle:
    """Follows `num_engines` engines by their own speed, without asking them."""

    def __init__(self, profile: EngineProfile, num_engines: int, chunk_tokens: int) -> None:
        self._profile = profile
        self._chunk_tokens = chunk_tokens
        num_chunks = profile.num_kv_blocks * profile.block_size // chunk_tokens
        self._caches = [PrefixCache(num_chunks) for _ in range(num_engines)]
        self._free_s = [0.0] * num_engines

    def place(self, arrival: Arrival) -> Placed:
        """Choose for a request, in order of arrival; ties go to the first engine."""
        options = [self._option(index, arrival) for index in range(len(self._caches))]
        best = min(options, key=lambda option: option.ttft_s)
        self._free_s[best.index] = arrival.at_s + best.ttft_s
        self._keep(self._caches[best.index], arrival.chunks)
        return best

    def _option(self, index: int, arrival: Arrival) -> Placed:
        # The last token is always computed.
        most = (arrival.input_tokens - 1) // self._chunk_tokens
        cached = self._caches[index].match(arrival.chunks[:most]) * self._chunk_tokens
        wait_s = max(self._free_s[index] - arrival.at_s, 0.0)
        own_s = self._profile.prefill_s(arrival.input_tokens - cached, cached)
        return Placed(index, wait_s + own_s, cached)

    def _keep(self, cache: PrefixCache, chunks: Sequence[int]) -> None:
        num_cached = cache.match(chunks)
        lease = cache.acquire(chunks, num_cached, len(chunks))
        if lease is not None:
            cache.store(lease, chunks[num_cached:])
            cache.release(lease)
