"""The fit of what was measured, its residuals, and the profile to paste."""

from collections.abc import Sequence
from statistics import mean

from bench.vllm_profile.measure import Measured, Point
from dualmap.ttft import DEFAULT_SPEED, PrefillFit
from dualmap.types import PrefillSpeed


def fit(points: Sequence[Point]) -> PrefillSpeed:
    """a + b*u + c*u*(cached + u/2) with the least relative error: the workers' own fit, over medians."""
    speed = DEFAULT_SPEED
    # Again from where it came out: samples are weighted by what is expected of them.
    for _ in range(3):
        found = PrefillFit(prior=speed)
        for point in points:
            found = found.observe(point.uncached, point.cached, point.median_s)
        speed = found.speed
    return speed


def residual(speed: PrefillSpeed, point: Point) -> float:
    """How far the fit is off, as a share of what was measured."""
    return speed.prefill_s(point.uncached, point.cached) / point.median_s - 1.0


def text(name: str, measured: Measured) -> str:
    """The table and the profile."""
    speed = fit(measured.points)
    rows = [
        f"{'uncached':>9} {'cached':>8} {'measured ms':>12} {'lowest':>9} {'highest':>9} {'fit ms':>9} {'off':>7}"
    ]
    for point in measured.points:
        low, high = min(point.seconds) * 1e3, max(point.seconds) * 1e3
        fitted_ms = speed.prefill_s(point.uncached, point.cached) * 1e3
        rows.append(
            f"{point.uncached:>9} {point.cached:>8} {point.median_s * 1e3:>12.2f} {low:>9.2f} {high:>9.2f}"
            f" {fitted_ms:>9.2f} {residual(speed, point):>+7.1%}"
        )
    off = [abs(residual(speed, point)) for point in measured.points]
    rows += ["", f"mean error {mean(off):.1%}, largest {max(off):.1%}", "", profile(name, measured, speed)]
    return "\n".join(rows)


def profile(name: str, measured: Measured, speed: PrefillSpeed) -> str:
    """Python for PROFILES of dualmap_sim/engine/profile.py; what was not measured keeps the default."""
    facts = measured.facts
    fields: dict[str, str] = {
        "name": repr(name).replace("'", '"'),
        "prefill_request_s": f"{speed.a_s:.3g}",
        "prefill_s_per_token": f"{speed.b_s_per_token:.3g}",
        "prefill_s_per_token2": f"{speed.c_s_per_token2:.3g}",
        "decode_step_s": f"{measured.decode_step_s:.3g}",
        "decode_s_per_seq": f"{measured.decode_s_per_seq:.3g}",
        "max_model_len": str(facts.max_model_len),
    }
    if facts.num_kv_blocks and facts.block_size:
        fields |= {"num_kv_blocks": str(facts.num_kv_blocks), "block_size": str(facts.block_size)}
    return "\n".join(("EngineProfile(", *(f"    {key}={value}," for key, value in fields.items()), "),"))
