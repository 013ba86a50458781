"""What could be had at most of the same requests: by an order that sees more than any router, and by nobody at all.

The *offline order* is the simulator's (`dualmap_sim.offline`): one super-instance as fast as all engines, with all
their cache, that knows what each prefill truly costs, serves the shortest that can be in time, stops others at no cost
and starves them. It is a good order, not the best. The *fluid bound* holds for any: past it the cheapest nine in ten
requests, each computing only what no prompt before it had, are more work than the engines can do in time.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from bench.peers.arena import DUALMAP, NUM_ENGINES
from bench.peers.capacity import SHARE
from bench.peers.config import SLO_S, Effort
from bench.peers.engines import PROFILE
from bench.peers.goodput import trial
from dualmap.types import Slo
from dualmap_sim.bounds import OFFLINE_ORDER, pooled
from dualmap_sim.fleet.capacity import find_capacity, most_late
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.result import ideal_hits
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.offline import OfflineOrder
from dualmap_sim.workloads.arrival import Arrival, to_arrivals

_GUESS_REQ_S = 5.0


class Bounds(NamedTuple):
    """The highest rates with 90 % in time, requests a second."""

    offline_req_s: float
    fluid_req_s: float


def find_bounds(workload: str, effort: Effort, trace: str | None) -> Bounds:
    """Those of a workload as it is sent, on the engines that all subjects have."""

    def highest(holds: Callable[[list[Arrival]], bool]) -> float:
        def attempt(rate_req_s: float) -> bool | None:
            source = trial(DUALMAP, workload, rate_req_s, effort, trace).source
            return holds(to_arrivals(source.requests(rate_req_s))) or None

        return find_capacity(attempt, _GUESS_REQ_S)[0]

    return Bounds(highest(_holds_offline), highest(_is_no_more_than_fits))


def _holds_offline(arrivals: list[Arrival]) -> bool:
    kv_blocks = PROFILE.num_kv_blocks * PROFILE.block_size // CHUNK_TOKENS
    fleet = FleetSetup(NUM_ENGINES, kv_blocks, Slo(SLO_S), OFFLINE_ORDER, model=PROFILE)
    return OfflineOrder(pooled(fleet)).run(arrivals, most_late(arrivals, SHARE))


def _is_no_more_than_fits(arrivals: list[Arrival]) -> bool:
    hits = ideal_hits(arrivals)
    costs_s = sorted(
        (arrival.input_tokens - hit) * PROFILE.prefill_s_per_token
        for arrival, hit in zip(arrivals, hits, strict=True)
    )
    span_s = arrivals[-1].at_s - arrivals[0].at_s + SLO_S
    return sum(costs_s[: ceil(SHARE * len(costs_s))]) <= NUM_ENGINES * span_s
