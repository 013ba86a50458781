"""The blocks in an engine's KV cache, as its events tell.

Pure: events in, blocks out. A block is known by the hash of its tokens and all before them, and by its parent. vLLM
stores a block that two requests computed side by side twice, and says so twice, so copies are counted. Blocks that
moved to a slower tier (CPU memory, storage) are still found: a block is gone when no tier has it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from dualmap_worker.kv_wire import BlockHash, KvEvent

_GPU = (None, "GPU")
_WHOLE_PREFIX = frozenset((None, "full_attention", "mla_attention", "sink_full_attention"))
"""Kinds of cache that keep every block of a prefix; a sliding window's blocks say nothing of what precedes them."""


@dataclass(slots=True)
class _Block:
    parent: BlockHash | None
    copies: int = 0
    elsewhere: set[str] = field(default_factory=set)

    def stored(self, medium: str | None) -> None:
        if medium in _GPU:
            self.copies += 1
        elif medium is not None:
            self.elsewhere.add(medium)

    def removed(self, medium: str | None) -> bool:
        """Whether nothing is left of it."""
        if medium in _GPU:
            self.copies -= 1
        elif medium is not None:
            self.elsewhere.discard(medium)
        return self.copies <= 0 and not self.elsewhere


@dataclass(frozen=True, slots=True)
class Chain:
    """The blocks of a request, in order, as far as they are known."""

    ancestors: list[BlockHash]
    """Those that were there before it, the nearest last."""
    stored: list[BlockHash]
    """Those that it stored itself."""
    rooted: bool
    """Whether the first ancestor (or stored block) begins the prompt."""


class KvBlocks:
    """One engine's blocks. `lost` is told of every block that is gone."""

    def __init__(self, lost: Callable[[BlockHash], None]) -> None:
        self._lost = lost
        self._blocks: dict[BlockHash, _Block] = {}
        self._runs: dict[str, list[BlockHash]] = {}
        self._torn: set[str] = set()
        self._group: int | None = None
        self._group_known = False
        self._doubtful: set[BlockHash] = set()
        self._doubt_from = 0
        self.block_size = 0
        """Tokens in a block; 0 before the first event."""
        self.capacity_tokens = 0
        """Tokens that the cache holds; 0 for unknown."""
        self.num_stored = 0
        """Blocks stored since the beginning: how far the cache has turned over."""
        self.names_requests = False
        """Whether events tell which request stored a block."""

    def __len__(self) -> int:
        """Blocks in the cache."""
        return len(self._blocks)

    def __contains__(self, block: BlockHash) -> bool:
        """Whether a block is in the cache."""
        return block in self._blocks

    @property
    def num_open(self) -> int:
        """Requests whose blocks are being noted."""
        return len(self._runs)

    @property
    def capacity_blocks(self) -> int:
        """Blocks that the cache holds; 0 for unknown."""
        return self.capacity_tokens // self.block_size if self.block_size else 0

    # Requests

    def open(self, session: str) -> None:
        """Note from now on which blocks this request stores."""
        self._runs[session] = []

    def close(self, session: str) -> None:
        """Nothing more is wanted of a request."""
        self._runs.pop(session, None)
        self._torn.discard(session)

    def torn(self, session: str) -> bool:
        """Whether events were missed while this request was open."""
        return session in self._torn

    def num_stored_by(self, session: str) -> int:
        """Blocks that a request has stored so far."""
        return len(self._runs.get(session, ()))

    def stored_by(self, session: str) -> list[BlockHash]:
        """What an open request stored in one piece, from its first block on, as far as that is there."""
        run = self._runs.get(session, [])
        if not run or run[0] not in self._blocks:
            return []
        stored = [run[0]]
        for block in run[1:]:
            # Beyond the prompt, several outputs (`n`) go several ways.
            known = self._blocks.get(block)
            if known is None or known.parent != stored[-1]:
                break
            stored.append(block)
        return stored

    def chain(self, session: str) -> Chain:
        """An open request's blocks: what it stored in one piece, and what that was stored upon."""
        stored = self.stored_by(session)
        if not stored:
            return Chain([], [], rooted=False)
        ancestors: list[BlockHash] = []
        parent = self._blocks[stored[0]].parent
        while parent is not None and (block_before := self._blocks.get(parent)) is not None:
            ancestors.append(parent)
            parent = block_before.parent
        ancestors.reverse()
        return Chain(ancestors, stored, rooted=parent is None)

    # Events

    def apply(self, event: KvEvent) -> None:
        """Follow one event."""
        match event.type:
            case "BlockStored" if self._counts(event):
                self._store(event)
            case "BlockRemoved" if not self._group_known or event.group_idx == self._group:
                for block in event.block_hashes:
                    known = self._blocks.get(block)
                    if known is not None and known.removed(event.medium):
                        self._drop(block)
            case "AllBlocksCleared":
                self.clear()

    def confirm(self, block: BlockHash) -> None:
        """A request has just read this one and those before it: they are there, whatever was missed."""
        parent: BlockHash | None = block
        while self._doubtful and parent is not None and (known := self._blocks.get(parent)) is not None:
            self._doubtful.discard(parent)
            parent = known.parent

    def miss(self) -> None:
        """Events were lost for good: what was known is doubtful until it is seen again.

        It is given up when the cache has turned over: what was not read by then has been evicted.
        """
        self._torn.update(self._runs)
        if self.capacity_blocks:
            self._doubtful = set(self._blocks)
            self._doubt_from = self.num_stored
        else:
            self.clear()

    def clear(self) -> None:
        """The cache is empty."""
        blocks, self._blocks = self._blocks, {}
        self._doubtful.clear()
        for block in blocks:
            self._lost(block)

    def _counts(self, event: KvEvent) -> bool:
        """Whether an event is of the one group of layers that is followed, the first that keeps whole prefixes."""
        if not self._group_known and event.kv_cache_spec_kind in _WHOLE_PREFIX:
            self._group, self._group_known = event.group_idx, True
        return self._group_known and event.group_idx == self._group

    def _store(self, event: KvEvent) -> None:
        parent = event.parent_block_hash
        run = self._runs.get(event.session_id) if event.session_id is not None else None
        if event.session_id is not None:
            self.names_requests = True
        self.block_size = event.block_size or self.block_size
        for block in event.block_hashes:
            known = self._blocks.get(block)
            if known is None:
                known = self._blocks[block] = _Block(parent)
            known.stored(event.medium)
            parent = block
        if run is not None:
            run.extend(event.block_hashes)
        if event.medium in _GPU:
            self.num_stored += len(event.block_hashes)
        if self._doubtful:
            self._doubtful.difference_update(event.block_hashes)
            if self.num_stored - self._doubt_from > self.capacity_blocks:
                doubtful, self._doubtful = self._doubtful, set()
                for block in doubtful:
                    self._drop(block)

    def _drop(self, block: BlockHash) -> None:
        del self._blocks[block]
        self._doubtful.discard(block)
        self._lost(block)
