from dataclasses import replace
from statistics import mean

import pytest

from dualmap.types import ChoiceRule, Slo
from dualmap_sim.engine import EngineProfile
from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.fleet.state import Load
from dualmap_sim.policies import make_policy
from dualmap_sim.workloads.arrival import Arrival, to_arrivals
from dualmap_sim.workloads.registry import make_workload
from dualmap_sim.workloads.traffic import Traffic

PROFILE = EngineProfile()
HOP_S = 0.01


def run(setup: FleetSetup, arrivals: list[Arrival]) -> Fleet:
    fleet = Fleet(setup, make_policy(setup))
    assert fleet.run(arrivals)
    return fleet


@pytest.mark.parametrize("model", ["serial", PROFILE])
def test_a_request_takes_a_hop_there_and_one_back(model: str | EngineProfile) -> None:
    alone = [Arrival(10.0 * index, f"r{index}", 1000, 4) for index in range(400)]
    setup = FleetSetup(model=model)
    without, with_hops = run(setup, alone), run(replace(setup, hop_s=HOP_S), alone)
    prefill_s = PROFILE.prefill_s(1000)
    assert [flight.ttft_s for flight in without.flights] == pytest.approx([prefill_s] * 400)
    extra_s = [flight.ttft_s - prefill_s for flight in with_hops.flights if flight.ttft_s is not None]
    assert min(extra_s) > 0.0
    assert mean(extra_s) == pytest.approx(2 * HOP_S, rel=0.15)
    assert all(f.finished_s is not None and f.finished_s >= f.told_s > 0.0 for f in with_hops.flights)


def test_seeds_draw_the_hops() -> None:
    setup = FleetSetup(model=PROFILE, hop_s=HOP_S)
    alone = [Arrival(0.0, "r", 1000, 4)]
    ttfts = [run(replace(setup, seed=seed), alone).flights[0].ttft_s for seed in (1, 2, 1)]
    assert ttfts[0] == ttfts[2] != ttfts[1]


def test_moves_and_preemptions_leave_nothing_behind() -> None:
    arrivals = to_arrivals(make_workload("documents", Traffic(rate_req_s=6.0, count=400, seed=1)))
    setup = FleetSetup(
        model=PROFILE, policy="round-robin", choice=ChoiceRule("round-robin"), slo=Slo(4.0), hop_s=HOP_S,
        ahead_tokens=2048, step_tokens=8192,
    )  # fmt: skip
    fleet = run(setup, arrivals)
    assert sum(flight.moves for flight in fleet.flights) > 0
    assert sum(flight.preemptions for flight in fleet.flights) > 0
    assert all(flight.finished_s is not None for flight in fleet.flights)
    assert fleet.books.feasible_s == fleet.books.infeasible_s == [0.0] * 8
    assert fleet.books.loads == [Load()] * 8


def test_instances_have_the_names_that_they_are_given() -> None:
    setup = FleetSetup(num_instances=2, names=("a", "b"))
    fleet = Fleet(setup, make_policy(setup))
    assert fleet.pool.names == ("a", "b")
    assert set(fleet.pool.rings.members) == {"a", "b"}


def test_round_robin_begins_with_the_first() -> None:
    setup = FleetSetup(num_instances=3, policy="round-robin", choice=ChoiceRule("round-robin"))
    fleet = run(setup, [Arrival(10.0 * index, f"r{index}", 1000, 4) for index in range(4)])
    assert [flight.choice.index for flight in fleet.flights if flight.choice] == [0, 1, 2, 0]
