"""What a description means: whether cache affinity can pay, how much it can save, and what limits it."""

from dualmap_sim.workloads.describe import Description, Hits, PoolSize

_LITTLE = 0.05
"""Under this share of the prefill work, a saving is within what load balance decides anyway."""
_SCARCE = 0.75
"""A pool that saves less than this part of what an infinite cache would is short of KV room."""
_HEAVY = 0.2
"""Late requests with more than this share of the work decide the tail, wherever they are placed."""


def saved_share(found: Description, hits: Hits) -> float:
    """Share of the cold prefill work that a way of caching saves."""
    return 1 - hits.prefill_s / found.cold.prefill_s


def verdict(found: Description, pool: PoolSize) -> str:
    """One sentence that answers, and one that says what the limit is."""
    ideal = saved_share(found, found.ideal)
    pooled = saved_share(found, found.pool_cache)
    placed = saved_share(found, found.random_placement)
    gain = found.pool_cache.bound_req_s / found.random_placement.bound_req_s
    if ideal < _LITTLE:
        return (
            f"Affinity cannot pay here: even an infinite cache saves only {ideal:.0%} of the prefill work, so "
            "balance the load and nothing else."
        )
    if pooled < _LITTLE:
        return (
            f"Affinity cannot pay with this KV room: it could save {ideal:.0%} of the prefill work, but a pool of "
            f"{pool.instances} x {pool.kv_blocks} blocks saves {pooled:.0%}. {_limits(found, pool)}"
        )
    if gain - 1 < _LITTLE:
        return (
            f"Affinity hardly pays here: caches of the pool's size save {pooled:.0%} of the prefill work, but random "
            f"placement already saves {placed:.0%}. {_limits(found, pool)}"
        )
    return (
        f"Affinity can pay here: caches of the pool's size can save {pooled:.0%} of the prefill work, where random "
        f"placement saves {placed:.0%}, which makes {gain:.2f} times the load bearable "
        f"({found.random_placement.bound_req_s:.2f} to {found.pool_cache.bound_req_s:.2f} requests/s). "
        f"{_limits(found, pool)}"
    )


def _limits(found: Description, pool: PoolSize) -> str:
    limits: list[str] = []
    ideal = saved_share(found, found.ideal)
    if found.reuse_blocks is not None and saved_share(found, found.pool_cache) < _SCARCE * ideal:
        limits.append(
            f"KV room (an infinite cache saves {ideal:.0%}; half of what is reused comes again after "
            f"{found.reuse_blocks.p50:,.0f} other blocks or more, and the pool holds "
            f"{pool.instances * pool.kv_blocks:,})"
        )
    hot = [prefix for prefix in found.hot if prefix.over_bound]
    # One chunk that everybody shares is a short system prompt: a key one chunk longer is past it.
    if hot and hot[-1].depth > 1:
        limits.append(
            f"hot prefixes (one of {hot[-1].depth} chunks or more takes {hot[-1].share:.0%} of the requests, more "
            f"than the two candidates of one key should)"
        )
    if found.late.work_share > _HEAVY:
        limits.append(
            f"long prompts ({found.late.request_share:.1%} of the requests cannot meet their objective cold, and "
            f"carry {found.late.work_share:.0%} of the work)"
        )
    if not limits:
        limits.append(f"text that is new ({1 - found.ideal.block_share:.0%} of the prompt blocks)")
    return f"What limits it: {'; '.join(limits)}."
