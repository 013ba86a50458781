import pytest

from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.fleet.state import Load
from dualmap_sim.policies import POLICIES, make_policy, with_policy
from dualmap_sim.workloads.arrival import to_arrivals
from dualmap_sim.workloads.registry import make_workload
from dualmap_sim.workloads.traffic import Traffic

CHAT = to_arrivals(make_workload("chat", Traffic(rate_req_s=20.0, count=400)))


def run(setup: FleetSetup) -> Fleet:
    fleet = Fleet(setup, make_policy(setup))
    assert fleet.run(CHAT)
    return fleet


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_serves_everybody_and_twice_the_same(name: str) -> None:
    setup = with_policy(FleetSetup(), name)
    first, second = run(setup), run(setup)
    assert len(first.flights) == len(CHAT)
    assert all(flight.finished_s is not None for flight in first.flights)
    assert first.books.feasible_s == first.books.infeasible_s == [0.0] * 8
    assert first.books.loads == [Load()] * 8
    assert [(f.choice, f.first_token_s, f.finished_s) for f in first.flights] == [
        (f.choice, f.first_token_s, f.finished_s) for f in second.flights
    ]


def test_any_policy_takes_any_order() -> None:
    setup = with_policy(FleetSetup(), "chwbl", "dlpm")
    assert setup.order.order == "dlpm"
    assert all(flight.finished_s is not None for flight in run(setup).flights)


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_places_on_who_takes_no_new_requests(name: str) -> None:
    setup = with_policy(FleetSetup(num_instances=4), name)
    fleet = Fleet(setup, make_policy(setup))
    fleet.loop.at(5.0, lambda: fleet.pool.change_members({1: 1.0, 3: 1.0}))
    assert fleet.run(CHAT)
    late = {f.choice.index for f in fleet.flights if f.arrival.at_s > 5.5 and f.choice and not f.moves}
    assert late
    assert late <= {1, 3}
