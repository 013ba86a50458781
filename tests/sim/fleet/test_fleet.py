"""A fleet whole: what cannot be served is refused and counts as late."""

from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import make_policy
from dualmap_sim.workloads.arrival import Arrival

ARRIVALS = [Arrival(0.0, "giant", 9_000, 4), Arrival(1.0, "small", 900, 4)]


def make_fleet() -> Fleet:
    setup = FleetSetup(kv_blocks=8)
    return Fleet(setup, make_policy(setup))


def test_a_prompt_larger_than_an_instance_is_refused() -> None:
    fleet = make_fleet()
    assert fleet.run(ARRIVALS)
    assert [(f.refused, f.within_slo) for f in fleet.flights] == [(True, False), (False, True)]


def test_what_is_refused_counts_as_late() -> None:
    assert make_fleet().run(ARRIVALS, most_late=1)
    assert not make_fleet().run(ARRIVALS, most_late=0)
