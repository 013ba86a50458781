"""A fleet whole: what cannot be served is refused and counts as late; instances are lost, leave and come."""

import pytest

from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.setup import Change, FleetSetup
from dualmap_sim.fleet.state import Books
from dualmap_sim.policies import POLICIES, make_policy, with_policy
from dualmap_sim.workloads.arrival import Arrival, to_arrivals
from dualmap_sim.workloads.registry import make_workload
from dualmap_sim.workloads.traffic import Traffic

ARRIVALS = [Arrival(0.0, "giant", 9_000, 4), Arrival(1.0, "small", 900, 4)]


def make_fleet(*changes: Change) -> Fleet:
    setup = FleetSetup(num_instances=1 if changes else 8, kv_blocks=8, changes=changes)
    return Fleet(setup, make_policy(setup))


def test_a_prompt_larger_than_an_instance_is_refused() -> None:
    fleet = make_fleet()
    assert fleet.run(ARRIVALS)
    assert [(f.refused, f.within_slo) for f in fleet.flights] == [(True, False), (False, True)]


def test_what_is_refused_counts_as_late() -> None:
    assert make_fleet().run(ARRIVALS, most_late=1)
    assert not make_fleet().run(ARRIVALS, most_late=0)


def busy_fleet(*changes: Change, model: str = "serial") -> tuple[Fleet, list[Arrival]]:
    setup = FleetSetup(num_instances=4, changes=changes, model=model)
    arrivals = to_arrivals(make_workload("chat", Traffic(8.0, count=600, seed=5), {"user_tokens": 6000}))
    return Fleet(setup, make_policy(setup)), arrivals


def used(fleet: Fleet, from_s: float, to_s: float) -> set[int]:
    return {
        f.choice.index for f in fleet.flights if f.choice and from_s < f.arrival.at_s <= to_s and not f.moves
    }


@pytest.mark.parametrize("model", ["serial", "default"])
def test_a_lost_instance_loses_no_request(model: str) -> None:
    fleet, arrivals = busy_fleet(Change(30.0, 1, "lose"), Change(50.0, 1, "join"), model=model)
    assert fleet.run(arrivals)
    assert all(f.first_token_s is not None for f in fleet.flights)
    # Some were there without a first token, and went elsewhere.
    assert any(f.moves and f.arrival.at_s < 30.0 < f.first_token_s for f in fleet.flights if f.first_token_s)
    assert used(fleet, 30.0, 50.0) == {0, 2, 3}
    assert used(fleet, 50.0, 75.0) == {0, 1, 2, 3}
    assert fleet.books == Books.empty(4)
    assert not any(instance.flights for instance in fleet.instances)


def test_a_draining_instance_ends_what_it_has() -> None:
    fleet, arrivals = busy_fleet(Change(30.0, 2, "drain"))
    assert fleet.run(arrivals)
    assert used(fleet, 0.0, 30.0) == {0, 1, 2, 3} and used(fleet, 30.0, 75.0) == {0, 1, 3}
    assert all(f.finished_s is not None for f in fleet.flights) and fleet.books == Books.empty(4)


def test_an_instance_that_joins_was_not_there_before() -> None:
    fleet, arrivals = busy_fleet(Change(40.0, 3, "join"))
    assert fleet.run(arrivals)
    assert used(fleet, 0.0, 40.0) == {0, 1, 2} and 3 in used(fleet, 40.0, 75.0)


def test_without_an_instance_requests_wait_or_are_refused() -> None:
    fleet = make_fleet(Change(0.5, 0, "lose"), Change(2.0, 0, "join"))
    assert fleet.run(
        [Arrival(0.4, "waits", 900, 4), Arrival(1.0, "refused", 900, 4), Arrival(2.5, "served", 900, 4)]
    )
    assert [f.refused for f in fleet.flights] == [False, True, False]
    assert [f.first_token_s is not None for f in fleet.flights] == [True, False, True]


@pytest.mark.parametrize("policy", POLICIES)
def test_an_adapters_requests_go_where_it_is_served(policy: str) -> None:
    setup = with_policy(FleetSetup(num_instances=4, adapters=(("fr", (1, 3)), ("gone", ()))), policy)
    fleet = Fleet(setup, make_policy(setup))
    arrivals = [
        Arrival(0.05 * i, f"r{i}", 2000, 4, (i % 5,) * 3, adapter=("", "fr", "de", "gone")[i % 4])
        for i in range(200)
    ]
    assert fleet.run(arrivals)
    where: dict[str, set[int]] = {}
    for flight in fleet.flights:
        assert flight.refused == (flight.arrival.adapter == "gone")
        if flight.choice is not None:
            where.setdefault(flight.arrival.adapter, set()).add(flight.choice.index)
    assert where["fr"] <= {1, 3} and where.keys() == {"", "fr", "de"}
    if policy in ("dualmap", "least-loaded", "round-robin"):
        assert where["fr"] == {1, 3} and where["de"] == {0, 1, 2, 3}
    assert fleet.books == Books.empty(4)


@pytest.mark.parametrize("num_routers", [2, 8])
def test_routers_see_what_others_booked_from_the_next_beat_on(num_routers: int) -> None:
    """However rarely each of them decides: a view is not fresh because it was not looked at."""
    requests = [
        Arrival(at_s, f"r{at_s}", 40_000, 1, ()) for at_s in (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2.1)
    ]

    def placed(sync_s: float) -> list[int]:
        setup = FleetSetup(num_instances=9, num_routers=num_routers, sync_s=sync_s, rebalance=None)
        setup = with_policy(setup, "least-loaded")
        fleet = Fleet(setup, make_policy(setup))
        fleet.run(requests)
        return [flight.choice.index for flight in fleet.flights if flight.choice is not None]

    assert len(set(placed(0.0))) == 9
    *early, late = placed(1.0)
    # Each knows its own alone, and draws among those that look idle.
    assert len(set(early)) < 8
    assert late not in early
