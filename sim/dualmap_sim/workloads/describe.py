"""A workload in numbers: how much comes, how much of it repeats, and what caches of a pool's size could make of it."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from dualmap.ttft import DEFAULT_SPEED
from dualmap_sim.workloads.arrival import Arrival
from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.mooncake import grain_s, spread_buckets
from dualmap_sim.workloads.reuse import Reuse, bounded_hits, find_reuse, random_placement_hits
from dualmap_sim.workloads.text import BLOCK_TOKENS
from dualmap_sim.workloads.trace_line import num_blocks

DEPTHS = (1, 2, 4, 8)
_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class PoolSize:
    """The pool that a workload is held against; an instance's KV room is in blocks of 512 tokens."""

    instances: int = 8
    kv_blocks: int = 840
    slo_s: float = 5.0

    def __post_init__(self) -> None:
        if self.instances < 1 or self.kv_blocks < 1 or not self.slo_s > 0:
            raise WorkloadError("instances and KV blocks must be 1 or more, the SLO above 0")


class Spread(msgspec.Struct, frozen=True):
    """A quantity over the requests."""

    mean: float
    p50: float
    p90: float
    p99: float


class Hits(msgspec.Struct, frozen=True):
    """What one way of caching would find."""

    block_share: float
    """Of all prompt blocks, partial ones among them."""
    prefill_s: float
    """Per request, on average."""
    bound_req_s: float
    """The rate at which the pool's instances would do nothing but prefill."""


class HotPrefix(msgspec.Struct, frozen=True):
    """The most popular prefix of `depth` chunks."""

    depth: int
    share: float
    """Of all requests."""
    over_bound: bool
    """More than 2/n of the requests: too much for the two candidates of one key."""
    num_over_bound: int


class Late(msgspec.Struct, frozen=True):
    """Requests that cannot meet their objective cold, on an idle instance."""

    request_share: float
    work_share: float
    """Of the cold prefill work."""
    request_share_cached: float
    """Those that could not even with an infinite cache."""


class Description(msgspec.Struct, frozen=True):
    """All of it; `cached` and `reuse_*` are None where nothing comes twice."""

    requests: int
    duration_s: float
    rate_req_s: float
    grain_s: float
    """Of the time stamps; 0 for fine ones."""
    gap_variation: float | None
    """Standard deviation over mean of the gaps between arrivals: 1 for a Poisson process; None for coarse stamps."""
    peak_to_mean: float
    """Of the arrivals in windows of 10 s."""
    input_tokens: Spread
    output_tokens: Spread
    tenants: int
    sessions: int
    half_shared_request_share: float
    """Requests of which half the prompt or more has come before."""
    cold: Hits
    ideal: Hits
    pool_cache: Hits
    instance_cache: Hits
    random_placement: Hits
    hot: list[HotPrefix]
    reuse_requests: Spread | None
    reuse_blocks: Spread | None
    late: Late


def describe(arrivals: Sequence[Arrival], pool: PoolSize) -> Description:
    """Describe a workload, its time stamps as they came; WorkloadError when it is empty."""
    if not arrivals:
        raise WorkloadError("there is no request to describe")
    arrivals = sorted(arrivals, key=lambda arrival: arrival.at_s)
    times_s = [arrival.at_s for arrival in arrivals]
    grain = grain_s(times_s)
    times_s = spread_buckets(times_s, grain)
    duration_s = times_s[-1] - times_s[0]
    reuse = find_reuse(arrivals)
    room = pool.kv_blocks

    def measure(hits: Sequence[int]) -> Hits:
        return _measure(arrivals, hits, pool.instances)

    return Description(
        requests=len(arrivals),
        duration_s=duration_s,
        rate_req_s=len(arrivals) / duration_s if duration_s else 0.0,
        grain_s=grain,
        gap_variation=None if grain else _variation([after - before for before, after in pairwise(times_s)]),
        peak_to_mean=_peak_to_mean(times_s),
        input_tokens=_spread(Counter(arrival.input_tokens for arrival in arrivals)),
        output_tokens=_spread(Counter(arrival.output_tokens for arrival in arrivals)),
        tenants=len({arrival.tenant for arrival in arrivals} - {""}),
        sessions=len({arrival.session for arrival in arrivals} - {None}),
        half_shared_request_share=_share(
            arrivals, lambda place: 2 * reuse.hits[place] * BLOCK_TOKENS >= arrivals[place].input_tokens
        ),
        cold=measure([0] * len(arrivals)),
        ideal=measure(reuse.hits),
        pool_cache=measure(bounded_hits(arrivals, pool.instances * room)),
        instance_cache=measure(bounded_hits(arrivals, room)),
        random_placement=measure(random_placement_hits(arrivals, room, pool.instances)),
        hot=[hottest(arrivals, depth, 2 / pool.instances) for depth in DEPTHS],
        reuse_requests=_spread(reuse.in_requests) if reuse.in_requests else None,
        reuse_blocks=_spread(reuse.in_chunks) if reuse.in_chunks else None,
        late=_late(arrivals, reuse, pool),
    )


def hottest(arrivals: Sequence[Arrival], depth: int, bound: float) -> HotPrefix:
    """The most popular prefix of `depth` chunks, and how many take more than `bound` of the requests."""
    counts = Counter(arrival.chunks[depth - 1] for arrival in arrivals if len(arrival.chunks) >= depth)
    shares = [count / len(arrivals) for _, count in counts.most_common()]
    over = sum(share > bound for share in shares)
    return HotPrefix(depth, shares[0] if shares else 0.0, over > 0, over)


def prefill_s(arrival: Arrival, hit_chunks: int) -> float:
    """Seconds of an instance that serves prefills one after the other; the last token is always computed."""
    cached = min(hit_chunks * BLOCK_TOKENS, arrival.input_tokens - 1)
    return DEFAULT_SPEED.prefill_s(arrival.input_tokens - cached, cached)


def _measure(arrivals: Sequence[Arrival], hits: Sequence[int], instances: int) -> Hits:
    blocks = sum(num_blocks(arrival.input_tokens) for arrival in arrivals)
    mean_s = sum(map(prefill_s, arrivals, hits)) / len(arrivals)
    return Hits(sum(hits) / blocks, mean_s, instances / mean_s)


def _late(arrivals: Sequence[Arrival], reuse: Reuse, pool: PoolSize) -> Late:
    cold_s = [prefill_s(arrival, 0) for arrival in arrivals]
    slo_s = [pool.slo_s if arrival.slo_s is None else arrival.slo_s for arrival in arrivals]
    late = [cost > slo for cost, slo in zip(cold_s, slo_s, strict=True)]
    work_s = sum(cost for cost, is_late in zip(cold_s, late, strict=True) if is_late)
    return Late(
        request_share=sum(late) / len(arrivals),
        work_share=work_s / sum(cold_s),
        request_share_cached=_share(
            arrivals, lambda place: prefill_s(arrivals[place], reuse.hits[place]) > slo_s[place]
        ),
    )


def _share(arrivals: Sequence[Arrival], holds: Callable[[int], bool]) -> float:
    return sum(map(holds, range(len(arrivals)))) / len(arrivals)


def _variation(gaps_s: Sequence[float]) -> float:
    mean_s = statistics.fmean(gaps_s) if gaps_s else 0.0
    return statistics.pstdev(gaps_s) / mean_s if mean_s else 0.0


def _peak_to_mean(times_s: Sequence[float]) -> float:
    windows = Counter(int((time_s - times_s[0]) / _WINDOW_S) for time_s in times_s)
    # The last window is cut off by the end, so it does not count unless it is the only one.
    last = max(windows)
    if last:
        del windows[last]
    return max(windows.values()) * max(last, 1) / sum(windows.values())


def _spread(counts: Mapping[int, int]) -> Spread:
    total = sum(counts.values())
    ranks = [share * total for share in (0.5, 0.9, 0.99)]
    found: list[float] = []
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(float(value))
    mean = sum(value * count for value, count in counts.items()) / total
    return Spread(mean, *found)
