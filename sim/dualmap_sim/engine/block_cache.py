"""A prefix cache of KV blocks as vLLM keeps it: chained hashes, reference counts, least recently used out.

Pure: blocks and hashes in, events out. A block is either pinned (some sequence uses it) or free; a free block
keeps its content, and its hash, until the allocator takes it. Sequences free their blocks tail first, so that
a long prefix loses its end before its beginning.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks that can now be found, in chain order; `tokens` are 4 bytes each, or empty if unknown."""

    block_hashes: tuple[int, ...]
    parent_hash: int | None
    tokens: bytes
    salt: str
    session: str | None = None
    """Of the request that stored them."""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks whose content was given up."""

    block_hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """Everything was forgotten."""


CacheEvent = BlocksStored | BlocksRemoved | BlocksCleared


def root_hash(salt: str) -> int:
    """The hash before the first block; the salt separates tenants and adapters."""
    digest: int = xxhash.xxh3_64_intdigest(salt.encode())
    return digest


def extend_chain(parent: int, tokens: bytes | memoryview, block_bytes: int) -> list[int]:
    """Hash each full block of `tokens` upon its predecessor; a partial last block is left out."""
    view = memoryview(tokens)
    digest = xxhash.xxh3_64_intdigest
    hashes: list[int] = []
    for start in range(0, len(view) - block_bytes + 1, block_bytes):
        # The predecessor goes in as the seed: no bytes are copied per block.
        parent = digest(view[start : start + block_bytes], parent)
        hashes.append(parent)
    return hashes


class BlockCache:
    """The blocks of one engine; block ids are 0..num_blocks-1."""

    def __init__(self, num_blocks: int, block_size: int, *, record_events: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._record = record_events
        self._refs = [0] * num_blocks
        self._hash_of: list[int | None] = [None] * num_blocks
        self._block_of: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._events: list[CacheEvent] = []

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses, cached content or not."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that a prefix can be found in."""
        return len(self._block_of)

    @property
    def usage(self) -> float:
        """The share of blocks in use."""
        return 1.0 - len(self._free) / self.num_blocks

    def hashes(self) -> list[int]:
        """Of the blocks that a prefix can be found in."""
        return list(self._block_of)

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks of this chain are cached."""
        block_of = self._block_of
        for index, block_hash in enumerate(hashes):
            if block_hash not in block_of:
                return index
        return len(hashes)

    def allocate(self, cached: Sequence[int], num_new: int) -> list[int] | None:
        """Pin the cached blocks of these hashes and take `num_new` more; None, and no change, if they lack."""
        refs, free = self._refs, self._free
        hits = [self._block_of[block_hash] for block_hash in cached]
        waking = sum(1 for block in hits if refs[block] == 0)
        if len(free) - waking < num_new:
            return None
        for block in hits:
            if refs[block] == 0:
                del free[block]
            refs[block] += 1
        return hits + self._take(num_new)

    def _take(self, num_new: int) -> list[int]:
        taken: list[int] = []
        removed: list[int] = []
        for _ in range(num_new):
            block, _unused = self._free.popitem(last=False)
            self._refs[block] = 1
            block_hash = self._hash_of[block]
            if block_hash is not None:
                del self._block_of[block_hash]
                self._hash_of[block] = None
                removed.append(block_hash)
            taken.append(block)
        if removed and self._record:
            self._events.append(BlocksRemoved(tuple(removed)))
        return taken

    def commit(
        self,
        blocks: Sequence[int],
        hashes: Sequence[int],
        parent_hash: int | None,
        tokens: bytes = b"",
        salt: str = "",
        session: str | None = None,
    ) -> None:
        """Make pinned blocks findable under these hashes; a block whose content is cached already stays private."""
        block_bytes = len(tokens) // max(len(hashes), 1)
        first = None
        for index, (block, block_hash) in enumerate(zip(blocks, hashes, strict=True)):
            is_new = block_hash not in self._block_of
            if is_new:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash
                first = index if first is None else first
            if first is not None and (not is_new or index == len(hashes) - 1):
                stop = index + is_new
                self._stored(BlocksStored(
                    tuple(hashes[first:stop]), hashes[first - 1] if first else parent_hash,
                    tokens[block_bytes * first : block_bytes * stop], salt, session,
                ))  # fmt: skip
                first = None

    def _stored(self, event: BlocksStored) -> None:
        if self._record:
            self._events.append(event)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back a sequence's blocks, in sequence order; the last one is the first to be evicted."""
        refs, free = self._refs, self._free
        for block in reversed(blocks):
            refs[block] -= 1
            if refs[block] == 0:
                free[block] = None

    def clear(self) -> None:
        """Forget every cached content; pinned blocks stay with their sequences."""
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks
        if self._record:
            self._events.append(BlocksCleared())

    def drain_events(self) -> list[CacheEvent]:
        """What changed since the last call, in order."""
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """Raise AssertionError unless every block is pinned or free, once, and the index agrees."""
        pinned = {block for block, count in enumerate(self._refs) if count}
        assert min(self._refs) >= 0, "a block was released more often than it was pinned"
        assert pinned.isdisjoint(self._free), "a pinned block is free"
        assert len(pinned) + len(self._free) == self.num_blocks, "a block is lost"
        for block_hash, block in self._block_of.items():
            assert self._hash_of[block] == block_hash, "the index points to other content"
        cached = sum(1 for value in self._hash_of if value is not None)
        assert cached == len(self._block_of), "a block has content that the index lacks"
