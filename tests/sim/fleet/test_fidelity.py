"""The chunked engine does what the engine model does, whatever arrives."""

import random
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dualmap_sim.engine import EngineModel, EngineProfile, SimRequest
from dualmap_sim.fleet.chunked import ChunkedEngine
from dualmap_sim.fleet.engine import CHUNK_TOKENS, Sequence
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.workloads.arrival import Arrival

from .conditions import Log, arrival

APART_S = 1e-6
"""What happens closer than this to a step's end could be taken for either side of it, by rounding alone."""


@dataclass(frozen=True)
class Happening:
    """A submit of `request`, an abort of `aborted`, or a change of speed."""

    at_s: float
    request: Arrival | None = None
    aborted: str | None = None
    slow_down: float | None = None


@dataclass
class Seen:
    """All that one engine shows of a run."""

    first_s: dict[str, float] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    gauges: list[tuple[int, int, float]] = field(default_factory=list)
    """Running, waiting and KV use just before each thing that happened."""
    left_cached: set[int] = field(default_factory=set)
    num_preemptions: int = 0
    prefilling_s: float = 0.0


def model_run(profile: EngineProfile, script: SequenceOf[Happening]) -> tuple[Seen, list[Happening]]:
    """The reference, step by step; also when things happened in the end, none of them at a step's end."""
    model = EngineModel(profile)
    seen, happened = Seen(), []
    pending = deque(sorted(script, key=lambda happening: happening.at_s))
    clock_s = 0.0

    def happens(at_s: float) -> None:
        it = pending.popleft()
        seen.gauges.append((model.num_running, model.num_waiting, model.cache.usage))
        if it.request is not None:
            prompt, chunks = it.request.input_tokens, it.request.chunks
            model.submit(
                SimRequest(
                    it.request.request_id,
                    max_new_tokens=it.request.output_tokens,
                    num_prompt_tokens=prompt,
                    block_hashes=chunks,
                ),
                at_s,
            )
        elif it.aborted is not None:
            if not model.abort(it.aborted):
                seen.gauges.pop()
                return
        else:
            assert it.slow_down is not None
            model.slow_down = it.slow_down
        happened.append(Happening(at_s, it.request, it.aborted, it.slow_down))

    while pending or model.has_work:
        if not model.has_work:
            clock_s = max(pending[0].at_s, clock_s + APART_S)
            while pending and pending[0].at_s <= clock_s:
                happens(clock_s)
            continue
        step = model.start_step(clock_s)
        assert step is not None and step.duration_s > 4 * APART_S
        at_s = clock_s + APART_S
        while pending and (at_s := max(pending[0].at_s, at_s)) < step.end_s - APART_S:
            happens(at_s)
        outcome = model.end_step(step)
        clock_s = step.end_s
        if len(step.work) > step.num_decodes:
            seen.prefilling_s += step.duration_s
        for token in outcome.tokens:
            if token.index == 0:
                seen.first_s[token.request_id] = clock_s
                seen.cached[token.request_id] = token.cached_tokens
            if token.finish is not None:
                seen.finished_s[token.request_id] = clock_s
    model.cache.check()
    seen.left_cached = set(model.cache.hashes())
    seen.num_preemptions = model.num_preemptions
    return seen, happened


def engine_run(profile: EngineProfile, happened: SequenceOf[Happening]) -> Seen:
    """The same in simulated time."""
    loop = Loop()
    log, seen = Log(loop), Seen()
    inside: set[int] = set()
    engine = ChunkedEngine(loop, log, profile, inside.add, inside.remove)
    sequences: dict[str, Sequence] = {}

    def happens(it: Happening) -> None:
        seen.gauges.append((engine.num_running, engine.num_waiting, engine.kv_use))
        if it.request is not None:
            sequences[it.request.request_id] = Sequence(it.request)
            engine.submit(sequences[it.request.request_id])
        elif it.aborted is not None:
            engine.abort(sequences[it.aborted])
        else:
            assert it.slow_down is not None
            engine.speed_factor = it.slow_down

    for it in happened:
        loop.at(it.at_s, happens, it)
    loop.run()
    assert engine.num_running == engine.num_waiting == engine.kv_use == 0
    seen.first_s, seen.finished_s, seen.cached = log.first_s, log.finished_s, log.cached
    seen.left_cached = inside
    seen.num_preemptions = engine.num_preemptions
    seen.prefilling_s = engine.busy_s
    return seen


def assert_alike(profile: EngineProfile, script: SequenceOf[Happening]) -> Seen:
    expected, happened = model_run(profile, script)
    seen = engine_run(profile, happened)
    assert seen.first_s == pytest.approx(expected.first_s, rel=0, abs=1e-6)
    assert seen.finished_s == pytest.approx(expected.finished_s, rel=0, abs=1e-6)
    assert seen.cached == expected.cached
    assert seen.num_preemptions == expected.num_preemptions
    assert seen.gauges == expected.gauges
    assert seen.left_cached == expected.left_cached
    assert seen.prefilling_s == pytest.approx(expected.prefilling_s, rel=0, abs=1e-6)
    return seen


@st.composite
def profiles(draw: st.DrawFn, longest: int) -> EngineProfile:
    """Roomy or so tight that the longest request just fits; all kinds of step limits."""
    max_num_seqs = draw(st.sampled_from([1, 2, 5, 256]))
    least_blocks = -(-longest // CHUNK_TOKENS)
    return EngineProfile(
        max_num_batched_tokens=max(draw(st.sampled_from([257, 2048, 8192])), max_num_seqs),
        max_num_partial_prefills=draw(st.sampled_from([1, 2, 4])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 300, 2048])),
        max_num_seqs=max_num_seqs,
        num_kv_blocks=draw(st.integers(least_blocks, 2 * least_blocks + 2) | st.just(2_000)),
        block_size=CHUNK_TOKENS,
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[EngineProfile, list[Happening]]:
    """Requests over a few shared prefixes, some of them aborted, at a rate that leaves the engine idle or not."""
    longest = draw(st.sampled_from([700, 2_000, 40_000]))
    most_new = draw(st.sampled_from([2, 600, 600]))
    profile = draw(profiles(longest + most_new))
    gap_s = draw(st.sampled_from([0.0, 0.02, 0.3, 3.0]))
    script: list[Happening] = []
    at_s = 0.0
    for index in range(draw(st.integers(1, 14))):
        name = f"r{index}"
        # Lengths at and beside a chunk's end are where rules differ.
        tokens = draw(
            st.integers(1, longest)
            | st.builds(
                lambda chunks, beside: min(max(chunks * CHUNK_TOKENS + beside, 1), longest),
                st.integers(0, longest // CHUNK_TOKENS),
                st.sampled_from([-1, 0, 1]),
            )
        )
        num_chunks = tokens // CHUNK_TOKENS
        family, shared = draw(st.integers(0, 2)), draw(st.integers(0, num_chunks) | st.just(num_chunks))
        chunks = tuple(
            family * 1_000 + place if place < shared else (index + 10) * 1_000 + place
            for place in range(num_chunks)
        )
        output = draw(st.integers(1, most_new))
        script.append(Happening(at_s, arrival(name, tokens, output, chunks)))
        if draw(st.integers(0, 3)) == 0:
            after_s = draw(st.floats(0.0, 0.2) | st.floats(0.0, 20.0))
            script.append(Happening(at_s + after_s, aborted=name))
        if draw(st.integers(0, 9)) == 0:
            script.append(Happening(at_s + draw(st.floats(0.0, 3.0)), slow_down=draw(st.floats(0.5, 4.0))))
        at_s += draw(st.floats(0.0, 1.0)) * gap_s
    return profile, script


@given(cases())
@settings(max_examples=250, deadline=None)
def test_it_does_what_the_engine_model_does(case: tuple[EngineProfile, list[Happening]]) -> None:
    seen = assert_alike(*case)
    event("preempts" if seen.num_preemptions else "does not preempt")


@pytest.mark.parametrize("decade", range(4))
def test_crowds_on_a_tight_cache(decade: int) -> None:
    """Longer runs than the property test draws, in which decodes take each other's blocks all the time."""
    num_preemptions = 0
    for seed in range(10 * decade, 10 * decade + 10):
        rng = random.Random(seed)
        longest, most_new = rng.choice([(700, 600), (2_000, 600), (8_000, 1_500)])
        least_blocks = -(-(longest + most_new) // CHUNK_TOKENS)
        profile = EngineProfile(
            max_num_batched_tokens=rng.choice([512, 2_048, 8_192]),
            max_num_partial_prefills=rng.choice([1, 4]),
            long_prefill_token_threshold=rng.choice([0, 300]),
            num_kv_blocks=least_blocks + rng.randint(0, 2 * least_blocks),
            block_size=CHUNK_TOKENS,
        )
        script = []
        for index in range(60):
            tokens = rng.randint(1, longest)
            chunks = tuple(
                (rng.randint(0, 1) if place == 0 else index + 10) * 1_000 + place
                for place in range(tokens // CHUNK_TOKENS)
            )
            at_s = rng.uniform(0.0, 10.0)
            script.append(Happening(at_s, arrival(f"r{index}", tokens, rng.randint(1, most_new), chunks)))
            if rng.random() < 0.2:
                script.append(Happening(at_s + rng.uniform(0.0, 30.0), aborted=f"r{index}"))
        num_preemptions += assert_alike(profile, script).num_preemptions
    assert num_preemptions > 100
