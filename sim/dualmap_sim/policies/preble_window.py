"""What Preble remembers of the last minutes: who was given which prefixes, their TTFT, and what requests put out."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence

from dualmap.types import PrefillSpeed
from dualmap_sim.fleet.engine import CHUNK_TOKENS


class WindowMedian:
    """The median of what was seen within a window."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque()
        self._ranked: list[float] = []

    def add(self, now_s: float, value: float) -> None:
        """One more value."""
        self._seen.append((now_s, value))
        insort(self._ranked, value)

    def median(self, now_s: float) -> float:
        """The upper median; 0 for nothing."""
        while self._seen and self._seen[0][0] < now_s - self._window_s:
            del self._ranked[bisect_left(self._ranked, self._seen.popleft()[1])]
        return self._ranked[len(self._ranked) // 2] if self._ranked else 0.0


class Prefix:
    """One chunk in its place: a node of the tree of prefixes."""

    __slots__ = ("count", "holders", "misses", "seconds", "ttfts")

    def __init__(self, seconds: float, index: int, missed: bool) -> None:
        self.seconds = seconds
        """To prefill it."""
        self.count = 1
        self.misses = int(missed)
        self.holders = {index: 1}
        """How often it was given to each instance."""
        self.ttfts: deque[tuple[float, float]] = deque()

    def ttft_doubled(self, now_s: float, window_s: float) -> bool:
        """The mean TTFT of the window's newer half is twice that of its older half, or more."""
        older: list[float] = []
        newer: list[float] = []
        for at_s, ttft_s in self.ttfts:
            if at_s >= now_s - window_s / 2:
                newer.append(ttft_s)
            elif at_s >= now_s - window_s:
                older.append(ttft_s)
        if not older or not newer:
            return False
        return sum(newer) / len(newer) >= 2.0 * sum(older) / len(older)


class PrefixWindow:
    """Prefixes allocated within a window; `load_s` is what they come to on each instance.

    That is the sum over prefixes of miss rate x count x prefill seconds / holders, kept up as prefixes come and go.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._prefixes: dict[int, Prefix] = {}
        self._given: deque[tuple[float, int, Sequence[int], int]] = deque()
        self._load_s: dict[int, float] = {}

    def allocate(
        self, now_s: float, index: int, chunks: Sequence[int], depth: int, speed: PrefillSpeed
    ) -> None:
        """A prompt goes to an instance that holds `depth` of its chunks."""
        self._given.append((now_s, index, chunks, depth))
        prefixes, new_s = self._prefixes, 0.0
        for place, chunk in enumerate(chunks):
            missed = place >= depth
            prefix = prefixes.get(chunk)
            if prefix is None:
                seconds = speed.prefill_s(CHUNK_TOKENS, place * CHUNK_TOKENS) - speed.a_s
                prefixes[chunk] = Prefix(seconds, index, missed)
                new_s += missed * seconds
                continue
            prefix.count += 1
            given = prefix.holders.get(index, 0)
            if missed or not given:
                self._weigh(prefix, -1.0)
                prefix.misses += missed
                prefix.holders[index] = given + 1
                self._weigh(prefix, 1.0)
            else:
                prefix.holders[index] = given + 1
        self._load_s[index] = self._load_s.get(index, 0.0) + new_s

    def expire(self, now_s: float) -> None:
        """Forget what was allocated before the window."""
        while self._given and self._given[0][0] < now_s - self._window_s:
            _, index, chunks, depth = self._given.popleft()
            for place, chunk in enumerate(chunks):
                self._withdraw(chunk, index, place >= depth)

    def _withdraw(self, chunk: int, index: int, missed: bool) -> None:
        prefix = self._prefixes[chunk]
        prefix.count -= 1
        if not prefix.count:
            # Its one holder is this one.
            self._load_s[index] -= prefix.misses * prefix.seconds
            del self._prefixes[chunk]
            return
        given = prefix.holders[index]
        self._weigh(prefix, -1.0)
        prefix.misses -= missed
        if given > 1:
            prefix.holders[index] = given - 1
        else:
            del prefix.holders[index]
        self._weigh(prefix, 1.0)

    def lost_s(self, chunks: Iterable[int]) -> float:
        """Prefill seconds of chunks, weighted by their miss rates; 0 for what nobody asked for in the window."""
        prefixes, lost_s = self._prefixes, 0.0
        for chunk in chunks:
            prefix = prefixes.get(chunk)
            if prefix is not None:
                lost_s += prefix.misses / prefix.count * prefix.seconds
        return lost_s

    def load_s(self, index: int) -> float:
        """Prefill seconds that the window's prefixes stand for on one instance."""
        return max(self._load_s.get(index, 0.0), 0.0)

    def prefix(self, chunk: int) -> Prefix | None:
        """A prefix, if it was allocated within the window."""
        return self._prefixes.get(chunk)

    def first_token(self, now_s: float, chunks: Sequence[int], ttft_s: float) -> None:
        """A request over these prefixes has its first token."""
        for chunk in chunks:
            prefix = self._prefixes.get(chunk)
            if prefix is None:
                continue
            ttfts = prefix.ttfts
            ttfts.append((now_s, ttft_s))
            while ttfts[0][0] < now_s - self._window_s:
                ttfts.popleft()

    def _weigh(self, prefix: Prefix, sign: float) -> None:
        if prefix.misses and prefix.holders:
            share_s = sign * prefix.misses * prefix.seconds / len(prefix.holders)
            for index in prefix.holders:
                self._load_s[index] = self._load_s.get(index, 0.0) + share_s
