from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dualmap_sim.engine import EngineConfigError, EngineProfile
from dualmap_sim.fleet.chunked import ChunkedEngine
from dualmap_sim.fleet.engine import Sequence
from dualmap_sim.fleet.loop import Loop, Timer

from .conditions import EngineBench, Log, arrival

PROFILE = EngineProfile()
DECODE_S = PROFILE.step_s(0.0, 1)
"""A step that decodes one sequence."""


class CountingLoop(Loop):
    num_timers = 0

    def at(self, time_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        self.num_timers += 1
        return super().at(time_s, callback, *args)


class Bench(EngineBench):
    """A chunked engine and what it tells."""

    def __init__(self, num_blocks: int = 840, profile: EngineProfile = PROFILE) -> None:
        self.num_blocks = num_blocks
        self.loop = CountingLoop()
        self.log = Log(self.loop)
        self.told: set[int] = set()
        profile = replace(profile, num_kv_blocks=num_blocks)
        self.engine = ChunkedEngine(self.loop, self.log, profile, self.told.add, self.told.remove)

    def blocks_in_use_at(self, at_s: float) -> list[int]:
        """A list that has the number of blocks in use at a time, once that has come."""
        seen: list[int] = []
        self.loop.at(at_s, lambda: seen.append(round(self.engine.kv_use * self.num_blocks)))
        return seen


@pytest.mark.parametrize("tokens", [1, 512, 8_192, 8_193, 100_000])
def test_a_lone_request(tokens: int) -> None:
    bench = Bench()
    bench.submit("a", tokens, output=300)
    bench.loop.run()
    assert bench.log.first_s["a"] == pytest.approx(PROFILE.prefill_s(tokens))
    assert bench.log.finished_s["a"] == pytest.approx(PROFILE.prefill_s(tokens) + 299 * DECODE_S)
    assert bench.engine.busy_s == pytest.approx(PROFILE.prefill_s(tokens)), "decodes alone do not count"


def test_a_run_of_decode_steps_is_one_timer() -> None:
    bench = Bench()
    bench.engine.submit(Sequence(arrival("a", 100, 400)))
    bench.loop.run()
    assert bench.loop.num_timers == 3, "to begin, to prefill, to decode 399 times"


def test_a_submit_waits_for_the_end_of_the_decode_step_under_way() -> None:
    bench = Bench()
    bench.submit("a", 100, output=400)
    first_s = PROFILE.prefill_s(100)
    bench.submit("b", 100, at_s=first_s + 7.3 * DECODE_S)
    bench.loop.run()
    both_s = PROFILE.step_s(PROFILE.prefill_s(100), 1)
    assert bench.log.first_s["b"] == pytest.approx(first_s + 8 * DECODE_S + both_s)
    assert bench.log.finished_s["a"] == pytest.approx(first_s + 398 * DECODE_S + both_s)


def test_a_submit_at_a_steps_end_is_in_time_for_the_next() -> None:
    bench = Bench()
    bench.submit("a", 100, output=400)
    first_s = PROFILE.prefill_s(100)
    bench.submit("b", 100, at_s=first_s + 7 * DECODE_S)
    bench.loop.run()
    both_s = PROFILE.step_s(PROFILE.prefill_s(100), 1)
    assert bench.log.first_s["b"] == pytest.approx(first_s + 7 * DECODE_S + both_s)


def test_who_arrives_at_once_shares_a_step_and_what_it_computes() -> None:
    bench = Bench()
    bench.submit("a", 1_100, chunks=(1, 2))
    bench.submit("b", 1_100, chunks=(1, 2))
    bench.loop.run()
    step_s = PROFILE.prefill_s(1_100) + PROFILE.prefill_s(1_100 - 1_024, 1_024)
    assert bench.log.first_s == pytest.approx({"a": step_s, "b": step_s})
    assert bench.log.cached == {"a": 0, "b": 1_024}


def test_what_a_listener_submits_is_in_the_next_step() -> None:
    bench = Bench()
    follower = Sequence(arrival("b", 100))
    bench.submit("a", 100)
    bench.log.on_finished = lambda: bench.engine.submit(follower) if not follower.prefilled else None
    bench.loop.run()
    assert bench.log.first_s["b"] == pytest.approx(2 * PROFILE.prefill_s(100))


def test_a_prompt_that_is_cached_to_its_end_computes_its_last_chunk_again() -> None:
    bench = Bench()
    bench.submit("a", 1_024, chunks=(1, 2))
    bench.submit("again", 1_024, chunks=(1, 2), at_s=10.0)
    bench.loop.run()
    assert bench.log.cached["again"] == 512
    assert bench.log.first_s["again"] - 10.0 == pytest.approx(PROFILE.prefill_s(512, 512))


def test_a_decode_takes_another_block_when_its_last_one_is_full() -> None:
    bench = Bench()
    bench.submit("a", 500, output=600)
    first_s = PROFILE.prefill_s(500)
    # With its first token out it has 501 tokens; the one that it decodes from needs room.
    before = bench.blocks_in_use_at(first_s + 11.5 * DECODE_S)
    after = bench.blocks_in_use_at(first_s + 12.5 * DECODE_S)
    last = bench.blocks_in_use_at(first_s + 12.5 * DECODE_S + 512 * DECODE_S)
    bench.loop.run()
    assert (before, after, last) == ([1], [2], [3])
    assert bench.log.finished_s["a"] == pytest.approx(first_s + 599 * DECODE_S)


def test_when_no_block_is_left_the_last_admitted_is_preempted_and_recomputed() -> None:
    bench = Bench(num_blocks=4)
    bench.submit("old", 1_000, output=100)
    bench.submit("young", 900, output=100)
    bench.loop.run()
    prefill_s = PROFILE.prefill_s(1_000) + PROFILE.prefill_s(900)
    two_s = PROFILE.step_s(0.0, 2)
    assert bench.engine.num_preemptions == 1
    assert bench.log.first_s == pytest.approx({"old": prefill_s, "young": prefill_s})
    # With 1,025 tokens it has no room for another one: 24 steps after its first token, out of the other's blocks.
    old_s = prefill_s + 24 * two_s + 75 * DECODE_S
    assert bench.log.finished_s["old"] == pytest.approx(old_s)
    # It comes back when the other one ends, finds its first chunk, and computes the rest of its 925 tokens.
    back_s = old_s + PROFILE.prefill_s(900 + 25 - 512, 512)
    assert bench.log.finished_s["young"] == pytest.approx(back_s + (100 - 26) * DECODE_S)


def test_a_long_prompt_waits_for_blocks_and_nobody_overtakes_it() -> None:
    bench = Bench(num_blocks=10)
    bench.submit("a", 3_000, output=200)
    bench.submit("long", 4_000, at_s=0.5)
    bench.submit("short", 100, at_s=0.6)
    bench.loop.run()
    ended_s = bench.log.finished_s["a"]
    assert ended_s == pytest.approx(PROFILE.prefill_s(3_000) + 199 * DECODE_S)
    both_s = PROFILE.prefill_s(4_000) + PROFILE.prefill_s(100)
    assert bench.log.first_s["long"] == bench.log.first_s["short"] == pytest.approx(ended_s + both_s)


def test_an_abort_of_who_waits_lets_the_next_one_in() -> None:
    bench = Bench(num_blocks=10)
    bench.submit("a", 3_000, output=200)
    waiting = bench.submit("waiting", 4_000, at_s=0.5)
    bench.submit("next", 100, at_s=0.6)
    first_s = PROFILE.prefill_s(3_000)
    abort_s = first_s + 60.5 * DECODE_S
    bench.loop.at(abort_s, bench.engine.abort, waiting)
    bench.loop.run()
    next_s = PROFILE.step_s(PROFILE.prefill_s(100), 1)
    assert bench.log.first_s["next"] == pytest.approx(first_s + 61 * DECODE_S + next_s)
    assert "waiting" not in bench.log.first_s


def test_an_abort_in_mid_prefill_ends_with_its_step_and_keeps_what_was_computed() -> None:
    bench = Bench()
    sequence = bench.submit("a", 20_000)
    bench.submit("b", 100, at_s=0.5)
    step_s = PROFILE.prefill_request_s + PROFILE.prefill_chunk_s(8_192, 0)
    bench.loop.at(0.6, bench.engine.abort, sequence)
    in_use = bench.blocks_in_use_at(0.7)
    bench.loop.run()
    assert step_s > 0.7 and in_use == [0], "its blocks are free at once"
    assert bench.log.first_s == pytest.approx({"b": step_s + PROFILE.prefill_s(100)})
    assert bench.engine.cached_chunks(sequence.arrival.chunks) == 8_192 // 512
    assert not sequence.prefilled


def test_an_abort_of_a_decode_ends_with_its_step() -> None:
    bench = Bench()
    bench.submit("a", 100, output=300)
    aborted = bench.submit("b", 100, output=300)
    first_s = 2 * PROFILE.prefill_s(100)
    two_s = PROFILE.step_s(0.0, 2)
    bench.loop.at(first_s + 9.9 * two_s, bench.engine.abort, aborted)
    bench.loop.run()
    assert bench.log.finished_s == pytest.approx({"a": first_s + 10 * two_s + 289 * DECODE_S})


def test_a_step_that_nobody_is_left_in_still_takes_its_time() -> None:
    bench = Bench()
    sequence = bench.submit("a", 5_000)
    bench.loop.at(0.1, bench.engine.abort, sequence)
    bench.submit("b", 100, at_s=0.2)
    bench.loop.run()
    assert bench.log.first_s == pytest.approx({"b": PROFILE.prefill_s(5_000) + PROFILE.prefill_s(100)})


def test_another_speed_holds_from_the_next_step_on() -> None:
    bench = Bench()
    bench.submit("a", 100, output=101)
    first_s = PROFILE.prefill_s(100)
    bench.loop.at(first_s + 9.5 * DECODE_S, setattr, bench.engine, "speed_factor", 3.0)
    bench.loop.run()
    assert bench.log.finished_s["a"] == pytest.approx(first_s + 10 * DECODE_S + 90 * 3 * DECODE_S)


def test_kill_returns_who_was_inside_and_the_cache_is_gone() -> None:
    bench = Bench(num_blocks=40)
    bench.submit("ended", 1_024)
    inside = [
        bench.submit("decoding", 1_024, output=1_000, at_s=1.0),
        bench.submit("prefilling", 15_000, at_s=2.0),
        bench.submit("waiting", 10_000, at_s=2.1),
    ]
    lost: list[Sequence] = []
    bench.loop.at(2.5, lambda: lost.extend(bench.engine.kill()))
    seen = bench.blocks_in_use_at(2.6)
    bench.submit("afterwards", 1_024, at_s=3.0)
    bench.loop.run()
    assert lost == inside and seen == [0]
    assert bench.log.finished_s == pytest.approx({
        "ended": PROFILE.prefill_s(1_024), "afterwards": 3.0 + PROFILE.prefill_s(1_024)
    })  # fmt: skip
    assert bench.told == set(arrival("afterwards", 1_024).chunks)
    assert bench.engine.num_running == bench.engine.num_waiting == 0


def test_what_can_never_run_is_refused() -> None:
    engine = Bench(num_blocks=4).engine
    for tokens, output in ((0, 1), (1, 0), (2_000, 49)):
        with pytest.raises(EngineConfigError):
            engine.submit(Sequence(arrival("a", tokens, output)))
    engine.submit(Sequence(arrival("a", 2_000, 48)))
    assert engine.num_waiting == 1
