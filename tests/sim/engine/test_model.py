import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.engine import EngineConfigError, EngineModel, EngineProfile, SimRequest, named_profile
from dualmap_sim.engine.text import Answer, encode

TINY = EngineProfile(
    name="tiny", num_kv_blocks=24, max_num_batched_tokens=64, max_num_seqs=4, max_num_partial_prefills=2
)


def request(name: str, prompt: bytes, new_tokens: int = 4, salt: str = "") -> SimRequest:
    return SimRequest(name, encode(prompt), new_tokens, Answer(prompt), salt)


def drain(model: EngineModel, now_s: float = 0.0) -> tuple[float, dict[str, list[int]], dict[str, str]]:
    """Step to the end: when that is, each request's tokens in order, and how it ended."""
    tokens: dict[str, list[int]] = {}
    ends: dict[str, str] = {}
    while (outcome := model.step(now_s)) is not None:
        now_s = outcome.end_s
        for event in outcome.tokens:
            tokens.setdefault(event.request_id, []).append(event.index)
            if event.finish is not None:
                assert event.request_id not in ends, "a request finished twice"
                ends[event.request_id] = event.finish
        model.cache.check()
    return now_s, tokens, ends


@pytest.mark.parametrize("num_tokens", [1, 100, 8_192, 8_193, 50_000, 130_000])
def test_a_lone_prefill_costs_what_the_profile_says_however_it_is_chunked(num_tokens: int) -> None:
    profile = EngineProfile()
    model = EngineModel(profile)
    model.submit(request("r", b"k" * 4 * num_tokens, 1), 0.0)
    end_s, _, _ = drain(model)
    expected = 0.015 + 90e-6 * num_tokens + 2.7e-9 * num_tokens * num_tokens / 2
    assert end_s == pytest.approx(expected, rel=1e-9)
    assert end_s == pytest.approx(profile.prefill_s(num_tokens))


def test_a_cached_prefix_costs_only_its_attention() -> None:
    profile = EngineProfile()
    model = EngineModel(profile)
    head = random.Random(1).randbytes(16 * 4 * 100)
    model.submit(request("warm", head + b"one", 1), 0.0)
    start_s, _, _ = drain(model)
    model.submit(request("hit", head + b"a different tail", 1), start_s)
    outcome = model.step(start_s)
    assert outcome is not None
    (token,) = outcome.tokens
    assert token.cached_tokens == 1600
    assert outcome.duration_s == pytest.approx(profile.prefill_s(4, 1600))
    assert outcome.prefill_tokens == 4


def test_the_last_prompt_token_is_always_computed() -> None:
    model = EngineModel(EngineProfile())
    for name in ("first", "second"):
        model.submit(request(name, b"q" * 128, 1), 0.0)
        _, _, ends = drain(model)
        assert ends == {name: "length"}
    assert model.cached_tokens == 16


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    model = EngineModel(EngineProfile())
    prompt = b"p" * 128
    model.submit(request("turn 1", prompt, 40), 0.0)
    drain(model)
    answer = Answer(prompt).text(0, 40).encode()
    model.submit(request("turn 2", prompt + answer + b"and then?", 1), 0.0)
    drain(model)
    assert model.cached_tokens == (32 + 32)


def test_requests_of_one_step_share_their_prefix() -> None:
    model = EngineModel(EngineProfile())
    for name in ("first", "second"):
        model.submit(request(name, b"t" * 4 * 160 + name.encode(), 1), 0.0)
    outcome = model.step(0.0)
    assert outcome is not None
    assert [event.cached_tokens for event in outcome.tokens] == [0, 160]


def test_salts_share_nothing() -> None:
    model = EngineModel(EngineProfile())
    for salt in ("a", "b", "a"):
        model.submit(request("r", b"s" * 640, 1, salt), 0.0)
        drain(model)
    assert model.cached_tokens == 144


def test_decodes_go_on_beside_a_long_prefill() -> None:
    profile = EngineProfile(max_num_batched_tokens=512)
    model = EngineModel(profile)
    model.submit(request("short", b"s" * 40, 50), 0.0)
    outcome = model.step(0.0)
    assert outcome is not None
    model.submit(request("long", b"l" * 4 * 5_000, 1), outcome.end_s)
    for _ in range(9):
        outcome = model.step(outcome.end_s)
        assert outcome is not None
        assert outcome.num_decodes == 1
        assert outcome.prefill_tokens == 511


def test_short_prefills_join_a_long_one_when_its_chunks_are_capped() -> None:
    model = EngineModel(EngineProfile(max_num_batched_tokens=1024, long_prefill_token_threshold=512))
    model.submit(request("long", b"l" * 4 * 5_000, 1), 0.0)
    model.submit(request("short", b"s" * 400, 1), 0.0)
    outcome = model.step(0.0)
    assert outcome is not None
    assert [event.request_id for event in outcome.tokens] == ["short"]


def test_out_of_blocks_the_newest_is_preempted_and_all_finish() -> None:
    model = EngineModel(TINY)
    for index in range(4):
        model.submit(request(f"r{index}", bytes([97 + index]) * 4 * 64, 100), 0.0)
    _, tokens, ends = drain(model)
    assert model.num_preemptions > 0
    assert len(ends) == 4
    assert all(indexes == list(range(100)) for indexes in tokens.values())
    assert model.cache.num_free == TINY.num_kv_blocks


def test_an_abort_in_mid_step_frees_at_once_and_gives_no_token() -> None:
    model = EngineModel(EngineProfile())
    model.submit(request("gone", b"g" * 4000), 0.0)
    step = model.start_step(0.0)
    assert step is not None
    assert model.num_running == 1
    assert model.abort("gone")
    assert model.num_running == 0
    assert model.cache.num_free == model.cache.num_blocks
    assert model.end_step(step).tokens == ()
    assert not model.abort("gone")
    assert model.step(1.0) is None


@pytest.mark.parametrize("in_mid_step", [False, True])
def test_an_aborted_prefill_resumes_from_its_finished_blocks(in_mid_step: bool) -> None:
    profile = EngineProfile(max_num_batched_tokens=1000)
    model = EngineModel(profile)
    prompt, now_s, computed = random.Random(2).randbytes(4 * 20_000), 0.0, 0
    for run in range(4):
        model.submit(request("long", prompt, 2), now_s)
        for number in range(3):
            step = model.start_step(now_s)
            assert step is not None
            if in_mid_step and number == 2:
                # The step goes on without it: what it computes is in the cache all the same.
                assert model.abort("long")
            now_s, computed = step.end_s, computed + sum(tokens for _, tokens in step.work)
            assert model.end_step(step).tokens == ()
        assert model.abort("long") is not in_mid_step
        # Another request in between takes none of it away.
        model.submit(request(f"short {run}", b"%d" % run * 400, 1), now_s)
        now_s, _, ends = drain(model, now_s)
        assert ends == {f"short {run}": "length"}
    model.submit(request("long", prompt, 2), now_s)
    first_tokens: list[int] = []
    while (outcome := model.step(now_s)) is not None:
        now_s, computed = outcome.end_s, computed + outcome.prefill_tokens
        first_tokens += [event.cached_tokens for event in outcome.tokens if event.index == 0]
    # Each run lost less than a block.
    assert 20_000 <= computed < 20_000 + 4 * profile.block_size
    assert 12_000 - 4 * profile.block_size < first_tokens[0] <= 12_000


def test_slow_down_multiplies_and_jitter_is_seeded() -> None:
    def first_step_s(slow_down: float, jitter: float = 0.0) -> float:
        model = EngineModel(EngineProfile(jitter=jitter, seed=7))
        model.slow_down = slow_down
        model.submit(request("r", b"r" * 400), 0.0)
        outcome = model.step(0.0)
        assert outcome is not None
        return outcome.duration_s

    assert first_step_s(10) == pytest.approx(10 * first_step_s(1))
    assert first_step_s(1, 0.2) == first_step_s(1, 0.2) != first_step_s(1)


def test_block_hashes_of_a_trace_replace_the_prompt() -> None:
    profile = EngineProfile(block_size=512, num_kv_blocks=840)
    model = EngineModel(profile)
    for name in ("a", "b"):
        model.submit(SimRequest(name, num_prompt_tokens=1500, block_hashes=(1, 2), max_new_tokens=600), 0.0)
        drain(model)
    assert model.cached_tokens == 1024


def test_what_can_never_run_is_refused() -> None:
    model = EngineModel(TINY)
    for bad in (request("r", b""), request("r", b"x", 0), request("r", b"x" * 4 * 300, 100)):
        with pytest.raises(EngineConfigError):
            model.submit(bad, 0.0)
    model.submit(request("r", b"x"), 0.0)
    with pytest.raises(EngineConfigError):
        model.submit(request("r", b"x"), 0.0)
    with pytest.raises(EngineConfigError):
        EngineProfile(jitter=1.0)
    with pytest.raises(EngineConfigError):
        named_profile("no such")


@dataclass(frozen=True)
class Arrival:
    letter: int
    prompt_tokens: int
    new_tokens: int
    gap_steps: int
    abort_after_steps: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 2),
        st.integers(1, 150),
        st.integers(1, 60),
        st.integers(0, 3),
        st.none() | st.integers(0, 12),
    ),
    max_size=12,
)


@given(ARRIVALS, st.integers(0, 2**32))
def test_every_request_ends_once_and_nothing_is_left(arrivals: list[Arrival], seed: int) -> None:
    model = EngineModel(TINY.override(jitter=0.3), random.Random(seed))
    now_s, busy_s, steps = 0.0, 0.0, 0
    pending = list(enumerate(arrivals))
    aborts: dict[int, list[str]] = {}
    prompts: dict[str, Arrival] = {}
    tokens: dict[str, int] = {}
    ended: set[str] = set()
    next_arrival = 0
    while pending or model.has_work:
        while pending and next_arrival <= steps:
            index, arrival = pending.pop(0)
            name = f"r{index}"
            prompts[name] = arrival
            prompt = bytes([97 + arrival.letter]) * 4 * arrival.prompt_tokens
            model.submit(request(name, prompt, arrival.new_tokens), now_s)
            if arrival.abort_after_steps is not None:
                aborts.setdefault(steps + arrival.abort_after_steps, []).append(name)
            next_arrival = steps + arrival.gap_steps
        step = model.start_step(now_s)
        for name in aborts.pop(steps, []):
            if model.abort(name):
                assert name not in ended
                ended.add(name)
        steps += 1
        if step is None:
            continue
        # Work conservation: a step computes something, within its budget.
        assert 0 < sum(count for _, count in step.work) <= TINY.max_num_batched_tokens
        assert step.duration_s > 0
        outcome = model.end_step(step)
        now_s, busy_s = outcome.end_s, busy_s + outcome.duration_s
        assert model.num_running <= TINY.max_num_seqs
        for event in outcome.tokens:
            assert event.request_id not in ended
            assert event.index == tokens.get(event.request_id, 0)
            assert event.cached_tokens < prompts[event.request_id].prompt_tokens
            tokens[event.request_id] = event.index + 1
            if event.finish is not None:
                assert event.index + 1 == prompts[event.request_id].new_tokens
                ended.add(event.request_id)
        model.cache.check()
        assert steps < 20_000
    assert ended == set(prompts)
    assert model.num_running == model.num_waiting == 0
    assert model.cache.num_free == TINY.num_kv_blocks
    assert model.busy_s == pytest.approx(busy_s)
    assert model.cached_tokens <= model.prompt_tokens


def test_a_long_prompt_is_cheap_to_simulate() -> None:
    prompt = random.Random(3).randbytes(4 * 130_000).translate(bytes(97 + value % 26 for value in range(256)))
    model = EngineModel(EngineProfile())
    cpu_s = time.process_time()
    for index in range(5):
        model.submit(request(f"r{index}", prompt, 1), 0.0)
        drain_once = model.step(0.0)
        while drain_once is not None:
            drain_once = model.step(drain_once.end_s)
    # Measured at about 10 ms each; the bound leaves room for a noisy machine and still fails a quadratic one.
    assert time.process_time() - cpu_s < 1.0
