"""What an instance holds, in the routers' words: the prompt chunks whose KV blocks are in its cache.

Pure: requests and KV events in, changes of ownership out. A chunk is held

* while a request that carries it waits or runs here: its prefill is on its way;
* after that as long as the block that its last token falls into is in the cache;
* where no event told of that block (it was there before the worker came, or events were lost), as long as the cache
  has not turned over since a request last read it.

Chunks become blocks by proportion: chunk i of a prompt ends at `i * chunk_bytes * tokens / bytes`, which is what the
choice reckons with as well.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from dualmap_worker.kv_blocks import KvBlocks
from dualmap_worker.kv_wire import BlockHash, KvEvent

Chunk = bytes
"""A chunk's hash, as Redis holds it."""

_LATE_EVENTS_S = 1.0
"""Events come on a way of their own: how long after a request's end some of its blocks may still be told of."""

_LARGE_BLOCK = 1024
"""Tokens that a block may have before an event has told: those of models with linear attention are the largest."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A request's prompt."""

    session: str
    """What the engine calls the request in its events."""
    chunks: Sequence[Chunk]
    chunk_bytes: int
    prompt_bytes: int
    prompt_tokens: int
    """As estimated; the engine may say better at the end."""

    def end_token(self, index: int, prompt_tokens: int) -> float:
        """Where chunk `index` (from 0) ends."""
        return (index + 1) * self.chunk_bytes * prompt_tokens / max(self.prompt_bytes, 1)


@dataclass(frozen=True, slots=True)
class _Ended:
    carried: Carried
    prompt_tokens: int
    cached_tokens: int | None
    answered: bool
    until_s: float

    @property
    def computed_tokens(self) -> int:
        """What of the prompt was not in the cache, as far as is known."""
        return self.prompt_tokens - (self.cached_tokens or 0)


class Holdings:
    """The chunks of one instance. Time is passed in."""

    def __init__(self) -> None:
        self.blocks = KvBlocks(self._block_lost)
        self._block_of: dict[Chunk, BlockHash] = {}
        self._chunks_of: dict[BlockHash, list[Chunk]] = {}
        self._believed: OrderedDict[Chunk, int] = OrderedDict()
        self._carried: dict[Chunk, int] = {}
        self._evicted: set[Chunk] = set()
        """Those carried by requests that events have told the end of: what a request read may be gone by its end."""
        self._ended: deque[_Ended] = deque()
        self._changed: set[Chunk] = set()
        self.num_untold = 0
        """Requests in a row that must have stored blocks of which no event told."""
        self._untold_tokens = 0
        """What those computed, and earlier ones: it turned the cache over as well."""

    def __len__(self) -> int:
        """Chunks held."""
        return len(self._all())

    def __contains__(self, chunk: Chunk) -> bool:
        """Whether a chunk is held."""
        return chunk in self._block_of or chunk in self._believed or chunk in self._carried

    @property
    def num_open(self) -> int:
        """Requests here, or ended so lately that their blocks may still be told of; zero at rest."""
        return self.blocks.num_open

    # Requests

    def arrived(self, carried: Carried) -> None:
        """A request is here; its router has written its chunks down."""
        self.blocks.open(carried.session)
        for chunk in carried.chunks:
            self._carried[chunk] = self._carried.get(chunk, 0) + 1

    def left(
        self,
        carried: Carried,
        now_s: float,
        *,
        answered: bool = False,
        prompt_tokens: int = 0,
        cached_tokens: int | None = None,
    ) -> None:
        """It is gone, however: answered, failed, moved; tokens as the engine counted them, 0 and None for unknown."""
        tokens = prompt_tokens or carried.prompt_tokens
        ended = _Ended(carried, tokens, cached_tokens, answered, now_s + _LATE_EVENTS_S)
        if self._told_of_all(ended):
            self._settle(ended)
        else:
            self._ended.append(ended)

    def computed_tokens(self, carried: Carried) -> int:
        """Tokens of an open request that are in the cache for sure, as far as events have told."""
        chain = self.blocks.chain(carried.session)
        return len(chain.ancestors + chain.stored) * self.blocks.block_size if chain.rooted else 0

    # The engine

    def apply(self, events: Sequence[KvEvent]) -> None:
        """Follow one batch of events."""
        for event in events:
            self.blocks.apply(event)

    def restarted(self) -> None:
        """The engine began anew: its cache is empty."""
        self.blocks.clear()
        self._changed.update(self._believed)
        self._believed.clear()

    def settle(self, now_s: float) -> None:
        """Take what time alone changes."""
        while self._ended and (self._ended[0].until_s <= now_s or self._told_of_all(self._ended[0])):
            self._settle(self._ended.popleft())
        turned_over = self._stored_tokens - self.blocks.capacity_tokens
        while self._believed and next(iter(self._believed.values())) < turned_over:
            chunk, _ = self._believed.popitem(last=False)
            self._changed.add(chunk)

    # What became of it

    def take_changes(self) -> tuple[list[Chunk], list[Chunk]]:
        """(held, gone): chunks whose state may have changed since the last call."""
        changed, self._changed = self._changed, set()
        held = [chunk for chunk in changed if chunk in self]
        return held, [chunk for chunk in changed if chunk not in self]

    def again(self, chunks: Sequence[Chunk]) -> None:
        """Tell of these once more."""
        self._changed.update(chunks)

    def everything(self) -> list[Chunk]:
        """All chunks held; what had changed is told by that."""
        self._changed.clear()
        return list(self._all())

    # Inside

    def _all(self) -> set[Chunk]:
        return self._block_of.keys() | self._believed.keys() | self._carried.keys()

    def _told_of_all(self, ended: _Ended) -> bool:
        """Whether events have told of every block that the request must have stored."""
        if not ended.answered or not self.blocks.block_size:
            return False
        full_blocks = ended.prompt_tokens // self.blocks.block_size
        session = ended.carried.session
        if ended.cached_tokens is None:
            chain = self.blocks.chain(session)
            return chain.rooted and len(chain.ancestors) + len(chain.stored) >= full_blocks
        new_blocks = full_blocks - ended.cached_tokens // self.blocks.block_size
        return len(self.blocks.stored_by(session)) >= new_blocks

    def _settle(self, ended: _Ended) -> None:
        """Give each chunk its block, and let go of what was only on its way."""
        carried = ended.carried
        if self.blocks.num_stored_by(carried.session):
            self.num_untold = 0
        elif self._must_have_stored(ended):
            self.num_untold += 1
            self._untold_tokens += ended.computed_tokens
        self._map(ended)
        in_cache_tokens = self._surely_cached(ended)
        self.blocks.close(carried.session)
        for index, chunk in enumerate(carried.chunks):
            count = self._carried[chunk] - 1
            if count:
                self._carried[chunk] = count
            else:
                del self._carried[chunk]
            if carried.end_token(index, ended.prompt_tokens) <= in_cache_tokens:
                self._read(chunk)
            if not count:
                self._evicted.discard(chunk)
            if chunk not in self:
                self._changed.add(chunk)

    def _must_have_stored(self, ended: _Ended) -> bool:
        """Whether it computed at least one whole block; what is not known says nothing."""
        if not ended.answered or (ended.cached_tokens is None and self.blocks.num_stored):
            return False
        return ended.computed_tokens >= (self.blocks.block_size or _LARGE_BLOCK)

    @property
    def _stored_tokens(self) -> int:
        """All that the engine has put into its cache, told or not."""
        return self.blocks.num_stored * self.blocks.block_size + self._untold_tokens

    def _surely_cached(self, ended: _Ended) -> int:
        """Leading tokens of the prompt that were in the cache at its end, whatever events told."""
        nothing_told = not self.blocks.num_stored_by(ended.carried.session)
        if ended.answered and (nothing_told or self.blocks.torn(ended.carried.session)):
            return ended.prompt_tokens
        return ended.cached_tokens or 0

    def _read(self, chunk: Chunk) -> None:
        """An engine has just read or computed this chunk."""
        block = self._block_of.get(chunk)
        if block is not None:
            self.blocks.confirm(block)
        elif chunk not in self._evicted:
            self._believed[chunk] = self._stored_tokens
            self._believed.move_to_end(chunk)

    def _map(self, ended: _Ended) -> None:
        blocks, carried = self.blocks, ended.carried
        chain = blocks.chain(carried.session)
        if not chain.stored:
            return
        size, known = blocks.block_size, chain.ancestors + chain.stored
        first = 0
        if not chain.rooted:
            if ended.cached_tokens is None:
                return
            # What it was stored upon was there before events told of it.
            first = ended.cached_tokens // size - len(chain.ancestors)
        blocks.confirm(chain.stored[0])
        place = {block: at for at, block in enumerate(known)}
        for index, chunk in enumerate(carried.chunks):
            at = max(int(carried.end_token(index, ended.prompt_tokens) / size), 1) - 1 - first
            if at >= len(known):
                return
            if at >= 0 and place.get(self._block_of.get(chunk, b""), at + 1) > at:
                self._assign(chunk, known[at])

    def _assign(self, chunk: Chunk, block: BlockHash) -> None:
        before = self._block_of.get(chunk)
        if before is not None:
            self._chunks_of[before].remove(chunk)
        self._block_of[chunk] = block
        self._chunks_of.setdefault(block, []).append(chunk)
        self._believed.pop(chunk, None)
        self._evicted.discard(chunk)
        self._changed.add(chunk)

    def _block_lost(self, block: BlockHash) -> None:
        for chunk in self._chunks_of.pop(block, ()):
            del self._block_of[chunk]
            self._changed.add(chunk)
            if chunk in self._carried:
                self._evicted.add(chunk)
