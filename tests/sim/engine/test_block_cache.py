from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dualmap_sim.engine.block_cache import (
    BlockCache,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    extend_chain,
    root_hash,
)

BLOCK_BYTES = 64


def chain(text: bytes, salt: str = "") -> list[int]:
    return extend_chain(root_hash(salt), text, BLOCK_BYTES)


def test_a_hash_stands_for_the_whole_prefix() -> None:
    first = chain(b"a" * 128)
    assert len(chain(b"a" * 127)) == 1
    assert chain(b"a" * 64) == first[:1]
    assert chain(b"b" * 64 + b"a" * 64)[1] != first[1]
    assert chain(b"a" * 128, "tenant")[0] != first[0]
    assert extend_chain(first[0], b"a" * 64, BLOCK_BYTES) == first[1:]


def test_a_freed_prefix_is_found_again_and_evicted_from_its_tail() -> None:
    cache = BlockCache(4, 16)
    hashes = chain(b"x" * 192)
    blocks = cache.allocate((), 3)
    assert blocks is not None
    cache.commit(blocks, hashes, None, b"x" * 192)
    cache.release(blocks)
    assert cache.match(hashes) == 3
    assert cache.drain_events() == [BlocksStored(tuple(hashes), None, b"x" * 192, "")]
    assert cache.allocate((), 2) is not None
    # One block was never used; the second had to come from the chain's end.
    assert cache.drain_events() == [BlocksRemoved((hashes[2],))]
    assert cache.match(hashes) == 2


def test_pinning_and_taking_is_all_or_nothing() -> None:
    cache = BlockCache(3, 16)
    hashes = chain(b"y" * 128)
    blocks = cache.allocate((), 2)
    assert blocks is not None
    cache.commit(blocks, hashes, None)
    cache.release(blocks)
    assert cache.allocate(hashes, 2) is None
    assert cache.num_free == 3
    assert cache.allocate(hashes, 1) is not None
    assert cache.num_free == 0
    cache.check()


def test_clearing_forgets_pinned_content_too() -> None:
    cache = BlockCache(2, 16)
    hashes = chain(b"z" * 64)
    blocks = cache.allocate((), 1)
    assert blocks is not None
    cache.commit(blocks, hashes, None)
    cache.clear()
    assert cache.match(hashes) == 0
    assert cache.drain_events()[-1] == BlocksCleared()
    cache.release(blocks)
    assert cache.num_free == 2
    cache.check()


class CacheMachine(RuleBasedStateMachine):
    """Sequences come and go over few blocks; what the events say always equals what the cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = BlockCache(6, 16)
        self.held: list[tuple[list[int], list[int]]] = []
        self.announced: set[int] = set()

    @rule(text=st.text("ab", min_size=1, max_size=4))
    def start(self, text: str) -> None:
        hashes = chain(b"".join(letter.encode() * BLOCK_BYTES for letter in text))
        cached = self.cache.match(hashes)
        blocks = self.cache.allocate(hashes[:cached], len(hashes) - cached)
        if blocks is None:
            return
        assert len(blocks) == len(hashes)
        parent = hashes[cached - 1] if cached else None
        self.cache.commit(blocks[cached:], hashes[cached:], parent)
        assert self.cache.match(hashes) == len(hashes)
        self.held.append((blocks, hashes))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        blocks, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.cache.release(blocks)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.held = [(blocks, []) for blocks, _ in self.held]

    @invariant()
    def no_block_is_lost_and_no_pinned_one_evicted(self) -> None:
        self.cache.check()
        for _, hashes in self.held:
            assert self.cache.match(hashes) == len(hashes)

    @invariant()
    def the_events_tell_the_whole_story(self) -> None:
        for event in self.cache.drain_events():
            match event:
                case BlocksStored(hashes):
                    self.announced |= set(hashes)
                case BlocksRemoved(hashes):
                    self.announced -= set(hashes)
                case BlocksCleared():
                    self.announced.clear()
        assert len(self.announced) == self.cache.num_cached
        assert all(self.cache.match([block_hash]) for block_hash in self.announced)

    def teardown(self) -> None:
        for blocks, _ in self.held:
            self.cache.release(blocks)
        assert self.cache.num_free == self.cache.num_blocks
        self.cache.check()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
