from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dualmap_sim.fleet.prefix_cache import Lease, PrefixCache


def fill(cache: PrefixCache, chunks: tuple[int, ...], private: int = 0) -> Lease:
    """A request that computes its whole prompt."""
    cached = cache.match(chunks)
    lease = cache.acquire(chunks, cached, len(chunks) + private)
    assert lease is not None
    cache.store(lease, chunks[cached:])
    return lease


def test_only_leading_chunks_match() -> None:
    cache = PrefixCache(10)
    fill(cache, (1, 2, 3))
    assert cache.match((1, 2, 3, 4)) == 3
    assert cache.match((1, 9, 3)) == 1
    assert cache.match((2, 3)) == 2, "the cache does not know that an id stands for a whole prefix"
    assert cache.match((9, 1)) == cache.match(()) == 0


def test_reserved_room_is_in_use_but_found_only_once_it_is_computed() -> None:
    cache = PrefixCache(10)
    lease = cache.acquire((1, 2), 0, 3)
    assert lease is not None
    assert (cache.num_in_use, cache.num_cached, cache.match((1, 2))) == (3, 0, 0)
    cache.store(lease, (1,))
    assert (cache.num_in_use, cache.num_cached, cache.match((1, 2))) == (3, 1, 1)


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    gone: list[int] = []
    cache = PrefixCache(4, evicted=gone.append)
    cache.release(fill(cache, (1, 2, 3, 4)))
    fill(cache, (7, 8))
    assert gone == [4, 3]
    assert cache.match((1, 2, 3, 4)) == 2


def test_the_least_recently_used_prefix_goes_first() -> None:
    gone: list[int] = []
    cache = PrefixCache(4, evicted=gone.append)
    cache.release(fill(cache, (1, 2)))
    cache.release(fill(cache, (3, 4)))
    cache.release(fill(cache, (1, 2)))
    fill(cache, (7, 8))
    assert gone == [4, 3]


def test_what_is_pinned_stays_and_a_request_that_lacks_room_changes_nothing() -> None:
    gone: list[int] = []
    cache = PrefixCache(4, evicted=gone.append)
    held = fill(cache, (1, 2))
    cache.release(fill(cache, (1, 2, 3)))
    assert cache.acquire((9,), 0, 3) is None
    assert not gone and cache.match((1, 2, 3)) == 3
    assert cache.acquire((9,), 0, 2) is not None
    assert gone == [3] and cache.match((1, 2)) == 2
    cache.release(held)


def test_waking_cached_chunks_counts_against_the_room() -> None:
    cache = PrefixCache(4)
    cache.release(fill(cache, (1, 2)))
    held = fill(cache, (8, 9))
    assert cache.acquire((1, 2), 2, 3) is None
    assert cache.acquire((1, 2), 2, 2) is not None
    cache.release(held)


def test_a_chunk_computed_twice_at_once_is_stored_once_and_its_copy_stays_private() -> None:
    told: list[int] = []
    cache = PrefixCache(4, stored=told.append)
    leases = [cache.acquire((1,), 0, 1) for _ in range(2)]
    for lease in leases:
        assert lease is not None
        cache.store(lease, (1,))
    assert told == [1] and (cache.num_in_use, cache.num_cached) == (2, 1)
    for lease in leases:
        assert lease is not None
        cache.release(lease)
    assert (cache.num_in_use, cache.num_cached) == (0, 1)


def test_a_request_grows_while_there_is_room() -> None:
    gone: list[int] = []
    cache = PrefixCache(3, evicted=gone.append)
    cache.release(fill(cache, (1,)))
    lease = fill(cache, (5, 6))
    assert cache.grow(lease) and gone == [1]
    assert not cache.grow(lease)
    cache.release(lease)
    assert cache.num_in_use == 0


def test_released_twice_is_released_once() -> None:
    cache = PrefixCache(4)
    held, lease = fill(cache, (1, 2)), fill(cache, (1, 2, 3), private=1)
    cache.release(lease)
    cache.release(lease)
    assert cache.num_in_use == 2
    cache.release(held)


def test_clear_forgets_what_nobody_holds() -> None:
    gone: list[int] = []
    cache = PrefixCache(5, evicted=gone.append)
    held = fill(cache, (1,))
    cache.release(fill(cache, (1, 2, 3)))
    cache.clear()
    assert sorted(gone) == [2, 3]
    assert cache.match((1, 2, 3)) == 1
    cache.release(held)
    cache.clear()
    assert cache.num_cached == 0


class PrefixCacheMachine(RuleBasedStateMachine):
    """Requests come and go over few blocks, beside a naive cache: a set of held chunks and a list by last use."""

    NUM_BLOCKS = 7

    def __init__(self) -> None:
        super().__init__()
        self.told: set[int] = set()
        self.cache = PrefixCache(self.NUM_BLOCKS, self.told.add, self.told.remove)
        self.held: list[tuple[Lease, tuple[int, ...]]] = []
        self.naive_held: list[list[int]] = []
        """Per lease, the findable chunks that it holds."""
        self.naive_private: list[int] = []
        self.naive_free: list[int] = []
        """Unheld chunks; the next to go comes first."""

    def naive_pins(self) -> set[int]:
        return {chunk for chunks in self.naive_held for chunk in chunks}

    def naive_room(self) -> int:
        return self.NUM_BLOCKS - len(self.naive_pins()) - sum(self.naive_private)

    def naive_fit(self) -> None:
        while len(self.naive_free) > self.naive_room():
            self.naive_free.pop(0)

    @rule(path=st.text("01", max_size=4), private=st.integers(0, 2))
    def start(self, path: str, private: int) -> None:
        # Prefixes form a binary tree; an id is the way from its root.
        chunks = tuple(int("1" + path[: place + 1], 2) for place in range(len(path)))
        findable = self.naive_pins() | set(self.naive_free)
        cached = next((place for place, chunk in enumerate(chunks) if chunk not in findable), len(chunks))
        assert self.cache.match(chunks) == cached
        wakes = [chunk for chunk in chunks[:cached] if chunk in self.naive_free]
        fits = self.naive_room() >= len(wakes) + len(chunks) - cached + private
        lease = self.cache.acquire(chunks, cached, len(chunks) + private)
        assert (lease is not None) == fits
        if lease is None:
            return
        self.held.append((lease, chunks))
        self.naive_free = [chunk for chunk in self.naive_free if chunk not in wakes]
        self.naive_held.append(list(chunks[:cached]))
        self.naive_private.append(len(chunks) - cached + private)
        self.naive_fit()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.held) - 1))
        lease, chunks = self.held[which]
        if self.naive_private[which] == 0:
            return
        # Its next chunk that it does not hold yet, as far as it has room.
        following = [chunk for chunk in chunks if chunk not in self.naive_held[which]][:1]
        self.cache.store(lease, following)
        for chunk in following:
            if chunk not in self.naive_pins() and chunk not in self.naive_free:
                self.naive_held[which].append(chunk)
                self.naive_private[which] -= 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.held) - 1))
        fits = self.naive_room() > 0
        assert self.cache.grow(self.held[which][0]) == fits
        self.naive_private[which] += fits
        self.naive_fit()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.held) - 1))
        self.cache.release(self.held.pop(which)[0])
        chunks = self.naive_held.pop(which)
        del self.naive_private[which]
        pins = self.naive_pins()
        self.naive_free += [chunk for chunk in reversed(chunks) if chunk not in pins]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.naive_free.clear()

    @invariant()
    def it_is_as_the_naive_one(self) -> None:
        pins = self.naive_pins()
        assert self.cache.num_in_use == len(pins) + sum(self.naive_private)
        assert self.told == pins | set(self.naive_free)
        assert self.cache.num_cached == len(self.told)

    @invariant()
    def blocks_are_never_more_than_there_are(self) -> None:
        assert self.cache.num_cached + sum(lease.num_private for lease, _ in self.held) <= self.NUM_BLOCKS

    def teardown(self) -> None:
        for lease, _ in self.held:
            self.cache.release(lease)
        assert self.cache.num_in_use == 0


TestPrefixCacheMachine = PrefixCacheMachine.TestCase
TestPrefixCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
