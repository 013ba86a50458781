"""What a tenant's flood costs the others, in the simulator: `python -m bench.fairness`.

Tenants `b` and `c` chat at a steady modest rate; `flood` sends many times its share. Each quiet tenant's TTFT is held
against its run without the flood, by queue order.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import xxhash

from dualmap.queue_order import OrderRule
from dualmap.types import Slo
from dualmap_sim.fleet.capacity import run_fleet
from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import make_policy
from dualmap_sim.study.source import BuiltinSource
from dualmap_sim.workloads.arrival import Arrival

_INSTANCES = 4
_QUIET_REQ_S, _SHARE_REQ_S = 2.0, 3.0
"""What each quiet tenant sends, and about a third of what the fleet serves of the flood's requests."""
ORDERS = {
    "fcfs": OrderRule("fcfs"),
    "late-last": OrderRule(tenant_fairness=False),
    "late-last, turns": OrderRule(),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A tenant's TTFT in seconds, and its share within the SLO."""

    p50_s: float
    p90_s: float
    within: float


def tenant(name: str, workload: str, rate_req_s: float, span_s: float, seed: int) -> list[Arrival]:
    """A tenant's own requests, which share no chunk with another's."""
    made = BuiltinSource(workload, (), int(rate_req_s * span_s)).arrivals(rate_req_s, seed)
    return [
        replace(
            arrival,
            tenant=name,
            request_id=f"{name}/{arrival.request_id}",
            chunks=tuple(xxhash.xxh3_64_intdigest(f"{name}{chunk}".encode()) for chunk in arrival.chunks),
        )
        for arrival in made
    ]


def mixed(flood_times: float, span_s: float, seed: int) -> list[Arrival]:
    """Everybody's requests in order of arrival; the flood is so many times its share, or absent."""
    arrivals = tenant("b", "chat", _QUIET_REQ_S, span_s, seed + 1)
    arrivals += tenant("c", "chat", _QUIET_REQ_S, span_s, seed + 2)
    if flood_times:
        arrivals += tenant("flood", "unique", flood_times * _SHARE_REQ_S, span_s, seed + 3)
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def measure(setup: FleetSetup, arrivals: Sequence[Arrival]) -> Mapping[str, Seen]:
    """What each tenant saw."""
    fleet = Fleet(setup, make_policy(setup))
    run_fleet(fleet, arrivals)
    ttfts: dict[str, list[float]] = {}
    within: dict[str, int] = {}
    for flight in fleet.flights:
        name = flight.arrival.tenant
        ttfts.setdefault(name, []).append(float("inf") if flight.ttft_s is None else flight.ttft_s)
        within[name] = within.get(name, 0) + flight.within_slo
    return {name: _seen(sorted(seconds), within[name]) for name, seconds in sorted(ttfts.items())}


def _seen(ttfts: Sequence[float], within: int) -> Seen:
    num = len(ttfts)
    return Seen(ttfts[num // 2], ttfts[num * 9 // 10], within / num)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="bench.fairness", description=__doc__)
    parser.add_argument(
        "--times", type=float, nargs="*", default=[5.0, 10.0], help="the flood over its share"
    )
    parser.add_argument("--span-s", type=float, default=60.0, help="how long all of them send")
    parser.add_argument("--quantum-s", type=float, default=OrderRule().quantum_s)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| flood | order | tenant | p50, s | p90, s | within 5 s | p50 over solo | p90 over solo |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rule in ORDERS.items():
        setup = make_setup(replace(rule, quantum_s=options.quantum_s), options.seed)
        solo = measure(setup, mixed(0.0, options.span_s, options.seed))
        for times in (0.0, *options.times):
            for who, seen in measure(setup, mixed(times, options.span_s, options.seed)).items():
                print(f"| {times:g}x | {name} | {who} | {_row(seen, solo.get(who))} |")


def _row(seen: Seen, solo: Seen | None) -> str:
    over = f"{seen.p50_s / solo.p50_s:.1f} | {seen.p90_s / solo.p90_s:.1f}" if solo is not None else "|"
    return f"{seen.p50_s:.2f} | {seen.p90_s:.2f} | {seen.within:.1%} | {over}"


def make_setup(rule: OrderRule, seed: int = 0) -> FleetSetup:
    """The fleet under an order of its queues."""
    base = FleetSetup()
    assert base.rebalance is not None
    return replace(
        base,
        num_instances=_INSTANCES,
        slo=Slo(5.0),
        order=rule,
        rebalance=replace(base.rebalance, order=rule),
        seed=seed,
    )


if __name__ == "__main__":
    main()
