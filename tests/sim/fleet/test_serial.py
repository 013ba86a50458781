import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_sim.fleet.engine import CHUNK_TOKENS, Sequence
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.prefix_cache import PrefixCache
from dualmap_sim.fleet.serial import SerialEngine

from .conditions import EngineBench, Log, arrival


class Bench(EngineBench):
    """A serial engine and what it tells."""

    def __init__(self, num_blocks: int = 840) -> None:
        self.loop = Loop()
        self.log = Log(self.loop)
        self.told: set[int] = set()
        self.cache = PrefixCache(num_blocks, self.told.add, self.told.remove)
        self.engine = SerialEngine(self.loop, self.cache, self.log)


def prefill_s(uncached: int, cached: int = 0, running: int = 0) -> float:
    """The formula of BASELINES.md."""
    alone_s = 0.015 + 90e-6 * uncached + 2.7e-9 * uncached * (cached + uncached / 2)
    return alone_s * (1 + 0.005 * running)


@given(tokens=st.integers(1, 120_000), cached_chunks=st.integers(0, 240), running=st.integers(0, 12))
@settings(deadline=None)
def test_a_prefill_takes_what_the_reference_study_says(tokens: int, cached_chunks: int, running: int) -> None:
    bench = Bench()
    cached_chunks = min(cached_chunks, (tokens - 1) // CHUNK_TOKENS)
    chunks = tuple(range(tokens // CHUNK_TOKENS))
    if cached_chunks:
        bench.submit("warm", cached_chunks * CHUNK_TOKENS, 1, chunks[:cached_chunks])
    for index in range(running):
        bench.submit(f"decodes {index}", 1, 100_000)
    bench.submit("it", tokens, 3, chunks, at_s=500.0)
    bench.loop.run()
    expected_s = prefill_s(tokens - cached_chunks * CHUNK_TOKENS, cached_chunks * CHUNK_TOKENS, running)
    assert bench.log.first_s["it"] - 500.0 == pytest.approx(expected_s)
    assert bench.log.cached["it"] == cached_chunks * CHUNK_TOKENS
    assert bench.log.finished_s["it"] - bench.log.first_s["it"] == pytest.approx(2 * 0.02)


def test_prefills_follow_one_another_and_only_they_keep_it_busy() -> None:
    bench = Bench()
    bench.submit("a", 1_000, output=11)
    bench.submit("b", 2_000, at_s=0.001)
    bench.loop.run()
    a_s = prefill_s(1_000)
    assert bench.log.first_s["a"] == pytest.approx(a_s)
    assert bench.log.first_s["b"] == pytest.approx(a_s + prefill_s(2_000, running=1))
    assert bench.log.finished_s["a"] == pytest.approx(a_s + 10 * 0.02)
    assert bench.engine.busy_s == pytest.approx(bench.log.first_s["b"])


def test_a_prompt_that_is_cached_to_its_end_computes_its_last_chunk_again() -> None:
    bench = Bench()
    bench.submit("a", 1_024, chunks=(1, 2))
    bench.submit("again", 1_024, chunks=(1, 2), at_s=10.0)
    bench.loop.run()
    assert bench.log.cached["again"] == 512
    assert bench.log.first_s["again"] - 10.0 == pytest.approx(prefill_s(512, 512))


def test_a_slow_engine_takes_longer_from_the_next_prefill_on() -> None:
    bench = Bench()
    bench.submit("a", 1_000)
    bench.submit("b", 1_000)
    bench.loop.at(0.05, setattr, bench.engine, "speed_factor", 4.0)
    bench.loop.run()
    assert bench.log.first_s["a"] == pytest.approx(prefill_s(1_000))
    # The first one still decodes its only token when the second begins.
    assert bench.log.first_s["b"] - bench.log.first_s["a"] == pytest.approx(4 * prefill_s(1_000, running=1))


def test_who_finds_no_room_waits_until_somebody_ends() -> None:
    bench = Bench(num_blocks=4)
    bench.submit("a", 3 * 512, output=101)
    bench.submit("b", 2 * 512)
    bench.loop.at(
        1.0, lambda: seen.append((bench.engine.num_running, bench.engine.num_waiting, bench.engine.kv_use))
    )
    seen: list[tuple[int, int, float]] = []
    bench.loop.run()
    assert seen == [(1, 1, 0.75)]
    assert bench.log.first_s["b"] == pytest.approx(bench.log.finished_s["a"] + prefill_s(2 * 512))
    assert bench.engine.kv_use == 0.0


@given(tokens=st.integers(2, 60_000), share=st.floats(0.001, 0.999), warm_chunks=st.integers(0, 3))
@settings(deadline=None)
def test_an_abort_in_mid_prefill_keeps_the_chunks_that_were_computed(
    tokens: int, share: float, warm_chunks: int
) -> None:
    bench = Bench()
    warm_chunks = min(warm_chunks, (tokens - 1) // CHUNK_TOKENS)
    chunks = tuple(range(tokens // CHUNK_TOKENS))
    if warm_chunks:
        bench.submit("warm", warm_chunks * CHUNK_TOKENS, 1, chunks[:warm_chunks])
    cached = warm_chunks * CHUNK_TOKENS
    own_s = prefill_s(tokens - cached, cached)
    sequence = bench.submit("it", tokens, 1, chunks, at_s=50.0)
    bench.loop.at(50.0 + share * own_s, bench.engine.abort, sequence)
    bench.submit("next", 100, at_s=50.0 + share * own_s)
    bench.loop.run()
    kept = bench.engine.cached_chunks(chunks)
    done_s = share * own_s
    # As many chunks as fit in the time, and no more.
    assert kept == warm_chunks or prefill_s(kept * CHUNK_TOKENS - cached, cached) <= done_s + 1e-9
    if (kept + 1) * CHUNK_TOKENS < tokens:
        next_s = prefill_s((kept + 1) * CHUNK_TOKENS - cached + 1, cached)
        assert next_s > done_s - 1e-9
    assert not sequence.prefilled and "it" not in bench.log.first_s
    assert bench.log.first_s["next"] == pytest.approx(50.0 + done_s + prefill_s(100))
    assert bench.cache.num_in_use == 0


def test_an_abort_of_who_waits_or_decodes() -> None:
    bench = Bench(num_blocks=8)
    decoding = bench.submit("decoding", 512, output=1_000)
    prefilling = bench.submit("prefilling", 512, at_s=1.0)
    waiting = bench.submit("waiting", 512, at_s=1.0)
    bench.loop.at(1.01, bench.engine.abort, waiting)
    bench.loop.at(1.02, bench.engine.abort, decoding)
    bench.loop.run()
    assert set(bench.log.finished_s) == {"prefilling"}
    assert prefilling.prefilled and not waiting.prefilled
    assert bench.cache.num_in_use == bench.engine.num_running == bench.engine.num_waiting == 0
    assert bench.engine.cached_chunks(decoding.arrival.chunks) == 1


def test_kill_returns_who_was_inside_and_the_cache_is_gone() -> None:
    bench = Bench()
    bench.submit("ended", 1_024)
    inside = [
        bench.submit("decoding", 1_024, output=1_000, at_s=1.0),
        bench.submit("prefilling", 10_000, at_s=2.0),
        bench.submit("waiting", 1_024, at_s=2.0),
    ]
    lost: list[Sequence] = []
    bench.loop.at(2.5, lambda: lost.extend(bench.engine.kill()))
    bench.submit("afterwards", 1_024, at_s=3.0)
    bench.loop.run()
    assert lost == inside
    assert set(bench.log.finished_s) == {"ended", "afterwards"}
    assert bench.told == set(arrival("afterwards", 1_024).chunks)
    assert bench.cache.num_in_use == 0
