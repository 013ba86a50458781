"""SGLang's cache-aware routing: the best match if it is good, else the smallest tree; the shortest queue when uneven.

Source: BASELINES.md: match ratio > 0.5, imbalance when max - min > 32 and max > 1.0001 x min of the requests
outstanding; approximate per-worker trees, bounded. The router knows only what it sent, not what engines hold.
Not known: the bound's size and how often what is over it goes (here `MAX_CHUNKS`, about 4 MB of text, once a minute;
trees trimmed at once would all be equally large, and the first instance always the smallest), and ties: here the first
instance. Capacity hangs on both: what is forgotten is placed by size, so that smaller and idler trees balance better.
"""

from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import num_requests
from dualmap_sim.policies.sent_prefixes import SentPrefixes

MATCH_RATIO = 0.5
IMBALANCE_ABS = 32
IMBALANCE_REL = 1.0001
MAX_CHUNKS = 2048
TRIM_EVERY_S = 60.0


class SGLangCacheAware:
    """A tree per instance."""

    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._trim_at_s = TRIM_EVERY_S
        self._trees: dict[int, SentPrefixes] = {}

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """Choose, and remember what went there."""
        if sight.now_s >= self._trim_at_s:
            self._trim_at_s = sight.now_s + TRIM_EVERY_S
            for tree in self._trees.values():
                tree.trim()
        index = self._choose(flight, sight)
        self._tree(index).add(flight.arrival.chunks)
        return sight.choice(flight, index)

    def _choose(self, flight: Flight, sight: Sight) -> int:
        arrival, usable = flight.arrival, sight.usable
        requests = {index: num_requests(sight.loads[index]) for index in usable}
        most, least = max(requests.values()), min(requests.values())
        # 1. Uneven: the shortest queue.
        if most - least > IMBALANCE_ABS and most > IMBALANCE_REL * least:
            return min(usable, key=requests.__getitem__)
        # 2. A good match: where it is.
        matches = {index: self._tree(index).match(arrival.chunks) for index in usable}
        best = max(usable, key=matches.__getitem__)
        if matches[best] * CHUNK_TOKENS > MATCH_RATIO * arrival.input_tokens:
            return best
        # 3. None: where most room is left in the cache.
        return min(usable, key=lambda index: len(self._tree(index)))

    def _tree(self, index: int) -> SentPrefixes:
        tree = self._trees.get(index)
        if tree is None:
            tree = self._trees[index] = SentPrefixes(self._max_chunks)
        return tree
