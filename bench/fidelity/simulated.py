"""A cell in the simulator."""

from bench.fidelity.cell import Cell
from bench.fidelity.outcome import Seen
from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.policies import make_policy
from dualmap_sim.workloads import TimedRequest


def run_simulated(cell: Cell, requests: list[TimedRequest], seed: int) -> list[Seen]:
    """Every request's outcome, in the order of `requests`."""
    setup = cell.setup(seed)
    fleet = Fleet(setup, make_policy(setup))
    fleet.run(cell.arrivals(requests, seed))
    flights = {flight.arrival.request_id: flight for flight in fleet.flights}
    seen = []
    for request in requests:
        flight = flights[request.request_id]
        assert flight.ttft_s is not None
        assert flight.sequence is not None
        assert flight.choice is not None
        seen.append(
            Seen(
                ttft_s=flight.ttft_s,
                input_tokens=flight.arrival.input_tokens,
                cached_tokens=flight.sequence.cached_tokens,
                instance=setup.names[flight.choice.index],
                moved=flight.moves > 0,
                escaped=flight.escaped,
            )
        )
    return seen
