"""The blocks that events tell of are the blocks that an engine's cache holds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_sim.engine.block_cache import BlockCache, BlocksRemoved, BlocksStored, extend_chain, root_hash
from dualmap_worker.kv_blocks import KvBlocks
from dualmap_worker.kv_wire import BlockHash, KvEvent


def stored(*blocks: int, parent: int | None = None, session: str | None = None, **more: object) -> KvEvent:
    fields = {"block_hashes": blocks, "parent_block_hash": parent, "session_id": session, **more}
    return KvEvent(type="BlockStored", block_size=16, **fields)  # type: ignore[arg-type]


def removed(*blocks: int, **more: object) -> KvEvent:
    return KvEvent(type="BlockRemoved", block_hashes=blocks, **more)  # type: ignore[arg-type]


class Followed:
    def __init__(self) -> None:
        self.lost: list[BlockHash] = []
        self.blocks = KvBlocks(self.lost.append)

    def apply(self, *events: KvEvent) -> KvBlocks:
        for event in events:
            self.blocks.apply(event)
        return self.blocks


def test_stored_blocks_are_there_until_they_are_removed() -> None:
    followed = Followed()
    blocks = followed.apply(stored(1, 2, 3), removed(3))
    assert [block in blocks for block in (1, 2, 3)] == [True, True, False]
    assert (followed.lost, len(blocks), blocks.num_stored) == ([3], 2, 3)


def test_a_block_stored_twice_is_gone_when_both_copies_are() -> None:
    followed = Followed()
    blocks = followed.apply(stored(1), stored(1), removed(1))
    assert 1 in blocks
    followed.apply(removed(1))
    assert followed.lost == [1]
    followed.apply(removed(1), removed(7))
    assert followed.lost == [1], "what is not known cannot be lost"


def test_a_block_that_moved_to_a_slower_tier_is_still_there() -> None:
    followed = Followed()
    blocks = followed.apply(stored(1, medium="GPU"), stored(1, medium="CPU"), removed(1, medium="GPU"))
    assert 1 in blocks
    followed.apply(removed(1, medium="CPU"))
    assert 1 not in blocks


def test_only_layers_that_keep_whole_prefixes_count() -> None:
    followed = Followed()
    sliding = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    blocks = followed.apply(stored(1, **sliding), stored(1, 2, **full), removed(1, group_idx=0))
    assert (len(blocks), 1 in blocks) == (2, True)
    followed.apply(stored(9, **sliding), removed(1, group_idx=1))
    assert (1 in blocks, 9 in blocks) == (False, False)


def test_events_of_tomorrow_are_passed_over() -> None:
    assert len(Followed().apply(KvEvent(type="BlockInactive", block_hashes=(1,)))) == 0


def test_a_request_has_a_chain_from_the_root() -> None:
    followed = Followed()
    followed.blocks.open("r")
    blocks = followed.apply(
        stored(1, 2), stored(3, 4, parent=2, session="r"), stored(8, parent=4, session="other")
    )
    chain = blocks.chain("r")
    assert (chain.ancestors, chain.stored, chain.rooted) == ([1, 2], [3, 4], True)
    blocks.close("r")
    assert blocks.num_open == 0


def test_outputs_that_part_ways_leave_the_chain_at_the_fork() -> None:
    followed = Followed()
    followed.blocks.open("r")
    blocks = followed.apply(
        stored(1, 2, session="r"), stored(3, parent=2, session="r"), stored(4, parent=2, session="r")
    )
    assert blocks.chain("r").stored == [1, 2, 3]


def test_a_chain_upon_unknown_blocks_has_no_root() -> None:
    followed = Followed()
    followed.blocks.open("r")
    assert not followed.apply(stored(5, 6, parent=4, session="r")).chain("r").rooted


def test_missed_events_leave_doubt_until_the_cache_has_turned_over() -> None:
    followed = Followed()
    blocks = followed.apply(stored(1, 2, 3))
    blocks.capacity_tokens = 10 * 16
    blocks.open("r")
    blocks.miss()
    assert blocks.torn("r")
    # 1 is stored again and 2 is read; 3 is heard of no more.
    followed.apply(stored(1))
    blocks.confirm(2)
    followed.apply(*(stored(block) for block in range(100, 110)))
    assert followed.lost == [3]


def test_missed_events_empty_a_cache_of_unknown_size() -> None:
    followed = Followed()
    blocks = followed.apply(stored(1, 2))
    blocks.miss()
    assert (len(blocks), followed.lost) == (0, [1, 2])


@pytest.mark.parametrize("clear", [KvEvent(type="AllBlocksCleared")])
def test_a_cleared_cache_is_empty(clear: KvEvent) -> None:
    followed = Followed()
    assert len(followed.apply(stored(1, 2), clear)) == 0
    assert followed.lost == [1, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 60))
def test_it_follows_a_whole_cache(seed: int, num_requests: int) -> None:
    """Random prompts with shared beginnings through a small cache: what is known is what is there."""
    rng = random.Random(seed)
    cache, followed = BlockCache(24, 4), Followed()
    running: list[list[int]] = []
    for _ in range(num_requests):
        tokens = b"".join(rng.randint(0, 2).to_bytes(4, "big") * 4 for _ in range(rng.randint(1, 8)))
        hashes = extend_chain(root_hash(""), tokens, 16)
        cached = cache.match(hashes)
        blocks = cache.allocate(hashes[:cached], len(hashes) - cached)
        while blocks is None:
            cache.release(running.pop(0))
            cached = cache.match(hashes)
            blocks = cache.allocate(hashes[:cached], len(hashes) - cached)
        cache.commit(
            blocks[cached:], hashes[cached:], hashes[cached - 1] if cached else None, tokens[16 * cached :]
        )
        running.append(blocks)
        if rng.random() < 0.5:
            cache.release(running.pop(rng.randrange(len(running))))
        for event in cache.drain_events():
            match event:
                case BlocksStored(block_hashes, parent):
                    followed.apply(stored(*block_hashes, parent=parent))
                case BlocksRemoved(block_hashes):
                    followed.apply(removed(*block_hashes))
        assert len(followed.blocks) == cache.num_cached
        assert all((block in followed.blocks) for block in hashes[: cache.match(hashes)])
