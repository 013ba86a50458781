"""What an instance holds, in chunks, as requests come and go and its engine's cache changes."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_worker.holdings import Carried, Holdings
from dualmap_worker.kv_wire import KvEvent

SIZE = 16
CHUNK_BLOCKS = 4


def chunks(*names: str) -> list[bytes]:
    return [name.encode().ljust(8) for name in names]


def carried(session: str, *names: str, extra_tokens: int = 0) -> Carried:
    """A prompt of whole chunks of four blocks (one byte a token), and some more tokens."""
    chunk_bytes = CHUNK_BLOCKS * SIZE
    num_bytes = chunk_bytes * len(names) + extra_tokens
    return Carried(session, chunks(*names), chunk_bytes, num_bytes, num_bytes)


def stored(session: str | None, first: int, count: int, parent: int | None = None) -> KvEvent:
    blocks = tuple(range(first, first + count))
    return KvEvent("BlockStored", blocks, parent, SIZE, session_id=session)


def removed(*blocks: int) -> KvEvent:
    return KvEvent("BlockRemoved", blocks)


def serve(holdings: Holdings, prompt: Carried, events: Sequence[KvEvent], cached: int | None = 0) -> None:
    holdings.arrived(prompt)
    holdings.apply(events)
    tokens = prompt.prompt_tokens
    holdings.left(prompt, 0.0, answered=True, prompt_tokens=tokens, cached_tokens=cached)


def held(holdings: Holdings, *names: str) -> list[str]:
    return [name for name in names if chunks(name)[0] in holdings]


def test_a_chunk_is_held_while_its_request_is_here_and_gone_when_nothing_came_of_it() -> None:
    holdings = Holdings()
    first, second = carried("s1", "a", "b"), carried("s2", "a")
    holdings.arrived(first)
    holdings.arrived(second)
    assert held(holdings, "a", "b", "c") == ["a", "b"]
    holdings.left(first, 0.0)
    holdings.settle(0.5)
    assert held(holdings, "a", "b") == ["a", "b"], "its last events may still come"
    holdings.settle(1.0)
    assert held(holdings, "a", "b") == ["a"]
    assert holdings.take_changes() == ([], chunks("b"))
    holdings.left(second, 1.0)
    holdings.settle(2.0)
    assert (len(holdings), holdings.num_open) == (0, 0)


def test_a_chunk_lives_as_long_as_its_last_block() -> None:
    holdings = Holdings()
    serve(holdings, carried("s1", "a", "b", extra_tokens=5), [stored("s1", 0, 8)])
    assert holdings.num_open == 0, "all of it was told: nothing to wait for"
    assert sorted(holdings.take_changes()[0]) == chunks("a", "b")
    holdings.apply([removed(6)])
    assert held(holdings, "a", "b") == ["a", "b"]
    holdings.apply([removed(7)])
    assert held(holdings, "a", "b") == ["a"]
    assert holdings.take_changes() == ([], chunks("b"))
    holdings.apply([KvEvent("AllBlocksCleared")])
    assert len(holdings) == 0


def test_a_longer_prompt_adds_its_own_chunks_to_those_that_were_there() -> None:
    holdings = Holdings()
    serve(holdings, carried("s1", "a", "b"), [stored("s1", 0, 8)])
    serve(holdings, carried("s2", "a", "b", "c"), [stored("s2", 20, 4, parent=7)], cached=128)
    holdings.apply([removed(23)])
    assert held(holdings, "a", "b", "c") == ["a", "b"]


def test_a_prompt_that_was_all_there_changes_nothing() -> None:
    holdings = Holdings()
    serve(holdings, carried("s1", "a"), [stored("s1", 0, 4)])
    holdings.take_changes()
    serve(holdings, carried("s2", "a"), [], cached=64)
    assert held(holdings, "a") == ["a"]
    assert (holdings.take_changes(), holdings.num_open) == (([], []), 0)


def test_events_may_come_after_the_answer() -> None:
    holdings = Holdings()
    prompt = carried("s1", "a", "b")
    serve(holdings, prompt, [stored("s1", 0, 4)])
    assert holdings.num_open == 1
    holdings.apply([stored("s1", 4, 4, parent=3)])
    holdings.settle(0.1)
    assert holdings.num_open == 0
    holdings.apply([removed(7)])
    assert held(holdings, "a", "b") == ["a"]


def test_a_prefill_that_was_cut_short_leaves_what_it_had_done() -> None:
    holdings = Holdings()
    prompt = carried("s1", "a", "b", "c")
    holdings.arrived(prompt)
    holdings.apply([stored("s1", 0, 9)])
    assert holdings.computed_tokens(prompt) == 9 * SIZE
    holdings.left(prompt, 0.0)
    holdings.settle(1.0)
    assert held(holdings, "a", "b", "c") == ["a", "b"]


def test_what_was_there_before_the_worker_is_believed_until_the_cache_has_turned_over() -> None:
    holdings = Holdings()
    holdings.blocks.capacity_tokens = 20 * SIZE
    # 8 blocks were read that no event had told of, 4 were stored upon them.
    serve(holdings, carried("s1", "a", "b", "c"), [stored("s1", 100, 4, parent=99)], cached=128)
    assert held(holdings, "a", "b", "c") == ["a", "b", "c"]
    holdings.apply([removed(103)])
    assert held(holdings, "a", "b", "c") == ["a", "b"]
    holdings.apply([stored(None, 200, 20)])
    holdings.settle(0.0)
    assert held(holdings, "a", "b") == ["a", "b"]
    holdings.apply([stored(None, 300, 1)])
    holdings.settle(0.0)
    assert len(holdings) == 0


def test_what_a_request_read_may_be_gone_by_its_end() -> None:
    holdings = Holdings()
    serve(holdings, carried("s1", "a", "b"), [stored("s1", 0, 8)])
    serve(holdings, carried("s2", "a", "b"), [removed(7)], cached=128)
    assert held(holdings, "a", "b") == ["a"]
    serve(holdings, carried("s3", "a", "b"), [stored("s3", 4, 4, parent=3)], cached=64)
    assert held(holdings, "a", "b") == ["a", "b"]


def test_an_engine_that_began_anew_holds_nothing() -> None:
    holdings = Holdings()
    holdings.blocks.capacity_tokens = 1000 * SIZE
    serve(holdings, carried("s1", "a"), [stored("s1", 0, 4)])
    serve(holdings, carried("s2", "b", "c"), [stored("s2", 50, 4, parent=49)], cached=64)
    waits = carried("s3", "d")
    holdings.arrived(waits)
    holdings.restarted()
    assert held(holdings, "a", "b", "c", "d") == ["d"]
    holdings.left(waits, 0.0)
    holdings.settle(1.0)
    assert len(holdings) == 0


def test_an_answer_whose_events_were_missed_is_believed() -> None:
    holdings = Holdings()
    holdings.blocks.capacity_tokens = 1000 * SIZE
    prompt = carried("s1", "a", "b")
    holdings.arrived(prompt)
    holdings.apply([stored("s1", 0, 2)])
    holdings.blocks.miss()
    holdings.left(prompt, 0.0, answered=True, prompt_tokens=128, cached_tokens=0)
    holdings.settle(1.0)
    assert held(holdings, "a", "b") == ["a", "b"]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_it_equals_what_a_recount_finds(seed: int) -> None:
    """Random prompts over a random cache, events late and in pieces: at rest a chunk is held as its block is."""
    rng = random.Random(seed)
    holdings = Holdings()
    cache: dict[tuple[str, ...], list[int]] = {}
    block_of: dict[tuple[str, ...], int] = {}
    alive: set[int] = set()
    numbers = iter(range(10**9))
    late: list[KvEvent] = []
    paths: set[tuple[str, ...]] = set()
    for number in range(rng.randint(5, 25)):
        path: tuple[str, ...] = tuple(rng.choice("xyz") for _ in range(rng.randint(1, 5)))
        names = ["".join(path[: depth + 1]) for depth in range(len(path))]
        prompt = carried(f"s{number}", *names)
        holdings.arrived(prompt)
        cached = 0
        parent = None
        run: list[int] = []
        run_parent = None
        for depth in range(1, len(path) + 1):
            blocks = cache.get(path[:depth])
            if blocks is not None and not run and all(block in alive for block in blocks):
                cached += len(blocks)
            else:
                blocks = [next(numbers) for _ in range(CHUNK_BLOCKS)]
                if not run:
                    run_parent = parent
                run += blocks
                alive.update(blocks)
                cache[path[:depth]] = blocks
                block_of[path[:depth]] = blocks[-1]
                paths.add(path[:depth])
            parent = blocks[-1]
        if run:
            half = rng.randint(1, len(run))
            pieces = [(run[:half], run_parent), (run[half:], run[half - 1])]
            events = [
                KvEvent("BlockStored", tuple(blocks), at, SIZE, session_id=prompt.session)
                for blocks, at in pieces
                if blocks
            ]
            split = rng.randint(0, len(events))
            holdings.apply(late + events[:split])
            late = events[split:]
        holdings.left(
            prompt,
            float(number),
            answered=True,
            prompt_tokens=prompt.prompt_tokens,
            cached_tokens=cached * SIZE,
        )
        holdings.apply(late)
        late = []
        holdings.settle(number + 0.5)
        if alive and rng.random() < 0.6:
            # Children go before their parents.
            path = max((p for p in paths if block_of[p] in alive), key=lambda p: (len(p), p), default=())
            if path:
                alive.difference_update(cache[path])
                holdings.apply([removed(*reversed(cache[path]))])
    holdings.settle(1e9)
    expected = {"".join(path) for path in paths if block_of[path] in alive}
    assert set(held(holdings, *("".join(path) for path in paths))) == expected
    assert len(holdings) == len(expected)
    assert holdings.num_open == 0


def test_it_counts_requests_that_must_have_stored_blocks_of_which_nothing_was_told() -> None:
    def untold(*prompts: tuple[int, int | None], events: Sequence[KvEvent] = ()) -> int:
        for number, (extra_tokens, cached) in enumerate(prompts):
            serve(holdings, carried(f"q{number}", extra_tokens=extra_tokens), events, cached)
        holdings.settle(10.0)
        return holdings.num_untold

    holdings = Holdings()
    assert untold((1000, 0)) == 0, "a block of such a model may be larger"
    assert untold((2000, 1500)) == 0, "all but 500 tokens were there"
    assert untold((2000, 0), (2000, None)) == 2
    assert untold((SIZE, 0), events=[stored("q0", 0, 1)]) == 0, "one that was told of"
    assert untold((SIZE - 1, 0), (10 * SIZE, 9 * SIZE + 1), (10 * SIZE, None)) == 0, (
        "none of them stored for sure"
    )
    assert untold((2 * SIZE, 0), (10 * SIZE, 9 * SIZE)) == 2, "by the size of a block, which is known by now"
    holdings.arrived(carried("gone", extra_tokens=2000))
    holdings.left(carried("gone", extra_tokens=2000), 0.0)
    assert untold() == 2, "nothing was answered"


@pytest.mark.parametrize(
    "events", [[], [stored("s0", 0, 4 * CHUNK_BLOCKS)]], ids=["never any", "one and no more"]
)
def test_what_is_believed_turns_over_where_no_events_come(events: Sequence[KvEvent]) -> None:
    holdings = Holdings()
    capacity = 100 * CHUNK_BLOCKS * SIZE
    holdings.blocks.capacity_tokens = capacity
    for number in range(200):
        names = [f"{number}-{index}" for index in range(20)]
        serve(holdings, carried(f"s{number}", *names), events if not number else ())
        holdings.settle(10.0 * number)
    holdings.settle(1e9)
    assert len(holdings) <= capacity // (CHUNK_BLOCKS * SIZE) + 20 + 4
    assert held(holdings, "199-0", "199-19") == ["199-0", "199-19"]
