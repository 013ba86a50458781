"""The KV blocks of one simulated engine by the chunks they hold: pinned, cached, least recently used out.

The grain is a chunk of 512 tokens, not an engine's block of 16: a trace knows no finer one, and a run of
12,000 requests then takes seconds. Otherwise as `engine.block_cache`: a request pins the cached chunks it starts
with and reserves room for the rest, which is private until it is computed; what nobody pins stays cached
until its room is needed, the end of a prefix going before its beginning.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class Lease:
    """What one request holds: pinned chunks in prompt order, and room without findable content."""

    __slots__ = ("num_private", "pinned")

    def __init__(self, pinned: list[int], num_private: int) -> None:
        self.pinned = pinned
        self.num_private = num_private


class PrefixCache:
    """Blocks of one engine; `stored` and `evicted` are told of each chunk that comes and goes."""

    def __init__(
        self,
        num_blocks: int,
        stored: Callable[[int], None] = lambda chunk: None,
        evicted: Callable[[int], None] = lambda chunk: None,
    ) -> None:
        self.num_blocks = num_blocks
        self._stored = stored
        self._evicted = evicted
        self._pins: dict[int, int] = {}
        self._unpinned: OrderedDict[int, None] = OrderedDict()
        self._num_private = 0

    @property
    def num_in_use(self) -> int:
        """Blocks that requests hold."""
        return len(self._pins) + self._num_private

    @property
    def num_cached(self) -> int:
        """Chunks that a prompt can find."""
        return len(self._pins) + len(self._unpinned)

    def match(self, chunks: Sequence[int]) -> int:
        """How many leading chunks are cached."""
        pins, unpinned = self._pins, self._unpinned
        for index, chunk in enumerate(chunks):
            if chunk not in pins and chunk not in unpinned:
                return index
        return len(chunks)

    def acquire(self, chunks: Sequence[int], num_cached: int, num_blocks: int) -> Lease | None:
        """Pin the first `num_cached` chunks and reserve room for `num_blocks` in all; None if there is none."""
        pins, unpinned = self._pins, self._unpinned
        wakes = sum(1 for chunk in chunks[:num_cached] if chunk not in pins)
        num_private = num_blocks - num_cached
        if self.num_in_use + wakes + num_private > self.num_blocks:
            return None
        pinned = list(chunks[:num_cached])
        for chunk in pinned:
            count = pins.get(chunk)
            if count is None:
                del unpinned[chunk]
                pins[chunk] = 1
            else:
                pins[chunk] = count + 1
        self._num_private += num_private
        self._make_room()
        return Lease(pinned, num_private)

    def grow(self, lease: Lease) -> bool:
        """One more block for a request; false if there is none."""
        if self.num_in_use >= self.num_blocks:
            return False
        lease.num_private += 1
        self._num_private += 1
        self._make_room()
        return True

    def store(self, lease: Lease, chunks: Sequence[int]) -> None:
        """Chunks that were computed in reserved room can be found from now on."""
        for chunk in chunks:
            # Computed twice at once: the second copy stays private, as in vLLM.
            if chunk in self._pins or chunk in self._unpinned:
                continue
            self._pins[chunk] = 1
            lease.pinned.append(chunk)
            lease.num_private -= 1
            self._num_private -= 1
            self._stored(chunk)

    def release(self, lease: Lease) -> None:
        """Give back what a request holds; its cached chunks stay until their room is needed."""
        self._num_private -= lease.num_private
        lease.num_private = 0
        pins = self._pins
        for chunk in reversed(lease.pinned):
            count = pins[chunk] - 1
            if count:
                pins[chunk] = count
            else:
                del pins[chunk]
                self._unpinned[chunk] = None
        lease.pinned = []

    def clear(self) -> None:
        """Forget what no request holds."""
        while self._unpinned:
            self._evicted(self._unpinned.popitem(last=False)[0])

    def _make_room(self) -> None:
        spare = self.num_blocks - self.num_in_use
        while len(self._unpinned) > spare:
            self._evicted(self._unpinned.popitem(last=False)[0])
