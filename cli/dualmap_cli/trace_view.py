"""How the description of a trace looks to a person."""

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dualmap_sim.workloads.describe import Description, Hits, PoolSize, Spread
from dualmap_sim.workloads.verdict import saved_share, verdict


def description_view(found: Description, pool: PoolSize) -> RenderableType:
    """The description as tables, and what it means."""
    return Group(
        _facts(found, pool),
        _spreads(found),
        _hits(found, pool),
        _hot(found, pool),
        Text(verdict(found, pool), style="bold"),
    )


def _facts(found: Description, pool: PoolSize) -> Table:
    late = found.late
    rows = {
        "requests": f"{found.requests:,} over {found.duration_s:,.0f} s: {found.rate_req_s:.2f} requests/s",
        "burstiness": f"{_gaps(found)}; busiest 10 s {found.peak_to_mean:.1f} times the mean",
        "share half": f"{found.half_shared_request_share:.1%} of the requests had half their prompt or more before",
        "late cold": f"{late.request_share:.1%} of the requests miss {pool.slo_s:g} s on an idle instance, with "
        f"{late.work_share:.1%} of the work ({late.request_share_cached:.1%} even with an infinite cache)",
    }
    if found.tenants or found.sessions:
        rows["who"] = f"{found.tenants:,} tenants, {found.sessions:,} sessions"
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _gaps(found: Description) -> str:
    if found.gap_variation is None:
        return f"stamps come in {found.grain_s:g} s buckets, here spread over them"
    return f"gap variation {found.gap_variation:.2f} (Poisson: 1)"


def _spreads(found: Description) -> Table:
    names = ("mean", "p50", "p90", "p99")
    table = Table("", *(Column(name, justify="right") for name in names), box=SIMPLE)
    rows: dict[str, Spread | None] = {
        "input tokens": found.input_tokens,
        "output tokens": found.output_tokens,
        "reused after, requests": found.reuse_requests,
        "reused after, distinct blocks": found.reuse_blocks,
    }
    for name, spread in rows.items():
        values = (spread.mean, spread.p50, spread.p90, spread.p99) if spread else ()
        table.add_row(name, *(f"{value:,.0f}" for value in values))
    return table


def _hits(found: Description, pool: PoolSize) -> Table:
    names = ("blocks found", "prefill s", "work saved", "bound req/s")
    table = Table("cache", *(Column(name, justify="right") for name in names), box=SIMPLE)
    rows: dict[str, Hits] = {
        "none": found.cold,
        f"random ({pool.instances} x {pool.kv_blocks:,} blocks)": found.random_placement,
        f"instance's size ({pool.kv_blocks:,})": found.instance_cache,
        f"pool's size ({pool.instances * pool.kv_blocks:,})": found.pool_cache,
        "infinite (ideal)": found.ideal,
    }
    for name, hits in rows.items():
        saved = f"{saved_share(found, hits):.1%}"
        table.add_row(
            name, f"{hits.block_share:.1%}", f"{hits.prefill_s:.3f}", saved, f"{hits.bound_req_s:.2f}"
        )
    return table


def _hot(found: Description, pool: PoolSize) -> Table:
    bound = f"over 2/{pool.instances}"
    table = Table(
        "hottest prefix, chunks", *(Column(name, justify="right") for name in ("requests", bound)), box=SIMPLE
    )
    for prefix in found.hot:
        table.add_row(str(prefix.depth), f"{prefix.share:.1%}", str(prefix.num_over_bound or "none"))
    return table
