"""A router's own memory of the prompts that it sent to an instance: an approximate, bounded tree of prefixes."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice


class SentPrefixes:
    """Chunks sent to one instance, least recently sent out.

    Chunk ids are chained, so that a set of them is a tree: a prompt's match is its leading run. The end of a
    prefix goes before its beginning, as leaves go first from a tree.
    """

    def __init__(self, max_chunks: int) -> None:
        self._max_chunks = max_chunks
        self._chunks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """How many chunks it remembers."""
        return len(self._chunks)

    def match(self, chunks: Sequence[int]) -> int:
        """How many leading chunks of a prompt were sent before."""
        known = self._chunks
        for place, chunk in enumerate(chunks):
            if chunk not in known:
                return place
        return len(chunks)

    def add(self, chunks: Sequence[int]) -> None:
        """A prompt was sent."""
        known = self._chunks
        for chunk in reversed(chunks):
            known[chunk] = None
            known.move_to_end(chunk)

    def trim(self) -> None:
        """Drop what is over the bound."""
        known = self._chunks
        while len(known) > self._max_chunks:
            known.popitem(last=False)

    def evicted_by(self, num_new: int) -> Iterator[int]:
        """The chunks that so many new ones would push out."""
        return islice(self._chunks, max(len(self._chunks) + num_new - self._max_chunks, 0))
