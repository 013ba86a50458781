"""The choice of the client that knows every queue and cache, which bounds what routers can do in `make bench-peers`."""

import pytest

from bench.peers.engines import PROFILE
from bench.peers.oracle import Oracle
from dualmap_sim.engine import EngineProfile


def test_the_oracle_takes_an_idle_engine_then_the_one_that_holds_the_prefix() -> None:
    oracle = Oracle(PROFILE, 2)
    long, short = range(312), range(1000, 1078)
    first = oracle.place("a", 20_000, long, 0.0)
    assert (first.index, first.cached_tokens, first.wait_s) == (0, 0, 0.0)
    assert first.ttft_s == pytest.approx(2.0)
    assert oracle.place("b", 5_000, short, 0.0).index == 1
    oracle.answered("a", 0, 2.0)
    oracle.answered("b", 1, 0.5)
    # Both are idle, and the first holds all blocks but the last token's.
    again = oracle.place("c", 20_000, long, 3.0)
    assert (again.index, again.cached_tokens) == (0, 312 * 64)
    oracle.answered("c", 0, 3.1)
    assert oracle.place("d", 100_000, range(2000, 3562), 4.0).index == 0
    # It leaves the prefix where waiting costs more than computing.
    elsewhere = oracle.place("e", 20_000, long, 4.0)
    assert (elsewhere.index, elsewhere.cached_tokens) == (1, 0)


def test_the_oracle_learns_when_an_engine_is_slower_than_it_thought() -> None:
    oracle = Oracle(PROFILE, 1)
    oracle.place("a", 10_000, (), 0.0)
    oracle.place("b", 10_000, (), 0.0)
    # The first is overdue: only what is behind it still counts, and its end begins the second.
    assert oracle.place("c", 10_000, (), 3.0).wait_s == pytest.approx(1.0)
    oracle.answered("a", 0, 3.5)
    assert oracle.place("d", 10_000, (), 4.0).wait_s == pytest.approx(1.5)
    for name in ("b", "c", "d", "never"):
        oracle.answered(name, 0, 9.0)
    assert oracle.place("e", 10_000, (), 9.0).wait_s == 0.0


def test_the_oracle_forgets_what_does_not_fit() -> None:
    tiny = EngineProfile(block_size=512, num_kv_blocks=10, max_num_seqs=1)
    oracle = Oracle(tiny, 1)
    oracle.place("a", 512 * 8 + 1, range(8), 0.0)
    oracle.place("b", 512 * 8 + 1, range(50, 58), 100.0)
    assert oracle.place("c", 512 * 8 + 1, range(8), 200.0).cached_tokens < 512 * 8
