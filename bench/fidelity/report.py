"""The report: every cell's measures on both sides, and the verdict."""

from collections.abc import Sequence

from bench.fidelity.cell import HOP_S, KV_BLOCKS, NUM_INSTANCES, NUM_ROUTERS, SLO_S
from bench.fidelity.compare import LIMIT, Comparison, Range

_TITLES = {
    "ttft_p50_s": "TTFT p50, s",
    "ttft_p90_s": "TTFT p90, s",
    "within_slo_share": "within SLO",
    "hit_share": "hit rate",
}


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """One line per cell: live, simulated and their difference, measure by measure."""
    rows = [("policy", "req/s", *_TITLES.values(), "moves", "escapes", "alike", "cores busy (own)")]
    rows += [
        (
            one.policy,
            f"{one.rate_req_s:g}",
            *map(_shown, one.measures),
            f"{one.live.moves} {_spread([run.moves for run in one.simulated])}",
            f"{one.live.escapes} {_spread([run.escapes for run in one.simulated])}",
            f"{one.alike_share:.0%}",
            f"{one.busy_share:.0%} ({one.own_share:.0%})",
        )
        for one in comparisons
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def text(comparisons: Sequence[Comparison]) -> str:
    """The whole report for people."""
    hops = [one.hop_s * 1e3 for one in comparisons]
    lines = [
        f"{NUM_ROUTERS} routers, {NUM_INSTANCES} simulated engines of {KV_BLOCKS} blocks of 512 tokens, a rebalancer, "
        f"real Valkey; SLO {SLO_S:g} s",
        "each measure: live, simulated (lowest to highest of its runs), difference; alike: requests that the same "
        "instance answered",
        "",
        *table(comparisons),
        "",
        f"a hop takes {min(hops):.1f} to {max(hops):.1f} ms by these runs; the simulator was given {HOP_S * 1e3:g} ms",
    ]
    lines += [f"doubt: {one.policy} at {one.rate_req_s:g}/s: {one.doubt}" for one in comparisons if one.doubt]
    apart = [
        f"{one.policy} at {one.rate_req_s:g}/s: {_TITLES[measure.name]} {_shown(measure)}"
        + (" (live is within the range of the simulator's own runs)" if measure.may_be_chance else "")
        for one in comparisons
        for measure in one.measures
        if not measure.agrees
    ]
    num_measures = sum(len(one.measures) for one in comparisons)
    agree = all(one.agrees for one in comparisons)
    lines.append(
        f"verdict: {num_measures - len(apart)} of {num_measures} within {LIMIT:.0%}; the simulator "
        f"{'agrees' if agree else 'does not agree'} with the live system"
    )
    return "\n".join([*lines, *(f"  beyond: {line}" for line in apart)])


def _shown(measure: Range) -> str:
    mark = "" if measure.agrees else " !"
    return (
        f"{measure.live:.3f} {measure.simulated:.3f} ({measure.low:.3f}-{measure.high:.3f}) "
        f"{measure.difference:+.1%}{mark}"
    )


def _spread(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"({low})" if low == high else f"({low}-{high})"
