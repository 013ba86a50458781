"""The bench that measures a vLLM: it runs, its fit is about what was measured, its profile can be pasted."""

from pathlib import Path
from typing import Any

import aiohttp

from bench.vllm_profile.measure import Point, measure
from bench.vllm_profile.report import fit, profile, residual, text
from bench.vllm_profile.shaped_model import make
from dualmap_sim.engine.profile import EngineProfile

from .gauges import gauge

UNCACHED, CACHED = (128, 512, 1024, 2048), (0, 1024)


async def test_a_profile_of_a_real_vllm(engines: list[str], http: aiohttp.ClientSession) -> None:
    before = await gauge(http, engines[0], "prompt_tokens_total")
    measured = await measure(engines[0], UNCACHED, CACHED, repeats=3)
    assert await gauge(http, engines[0], "prompt_tokens_total") > before
    assert measured.facts.max_model_len == 4096
    assert {(point.uncached + point.cached, point.cached >= 1024) for point in measured.points} == {
        (uncached + cached, cached > 0) for uncached in UNCACHED for cached in CACHED
    }
    speed = fit(measured.points)
    assert 0 < speed.prefill_s(2000, 0) < 10
    assert measured.decode_step_s > 0
    # A median point is fitted to within a half, whatever else this machine does.
    off = sorted(abs(residual(speed, point)) for point in measured.points)
    assert off[len(off) // 2] < 0.5, text("tiny", measured)
    made: Any = eval(profile("tiny", measured, speed).rstrip(","), {"EngineProfile": EngineProfile})
    assert (made.name, made.max_model_len) == ("tiny", 4096)
    assert made.num_kv_blocks > 10


def test_the_fit_finds_what_the_points_were_made_of() -> None:
    true = EngineProfile(prefill_request_s=0.02, prefill_s_per_token=5e-5, prefill_s_per_token2=3e-9)
    points = [
        Point(uncached, cached, [true.prefill_s(uncached, cached)])
        for uncached in (64, 512, 4096, 16384)
        for cached in (0, 4096, 65536)
    ]
    speed = fit(points)
    assert max(abs(residual(speed, point)) for point in points) < 0.02


def test_the_shaped_model_is_what_vllm_needs(tmp_path: Path) -> None:
    make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
