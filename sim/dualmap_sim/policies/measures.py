"""The measures that baselines share: what an instance has to do, and what a prompt would cost there."""

from collections.abc import Sequence

from dualmap.ttft import estimate
from dualmap.types import ChoiceRequest, ChoiceRule
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.fleet.state import Load
from dualmap_sim.workloads.arrival import Arrival

_NO_RULE = ChoiceRule()


def num_requests(load: Load) -> int:
    """Requests outstanding: placed there and not ended."""
    return load.num_pending + load.num_decoding


def cached_tokens(arrival: Arrival, depth: int) -> int:
    """Prompt tokens that `depth` cached chunks spare; the last token is always computed."""
    return max(min(depth * CHUNK_TOKENS, arrival.input_tokens - 1), 0)


def uncached_tokens(arrival: Arrival, depth: int) -> int:
    """Prompt tokens left to prefill behind `depth` cached chunks."""
    return arrival.input_tokens - cached_tokens(arrival, depth)


def fcfs_ttft_s(flight: Flight, sight: Sight, depths: Sequence[int]) -> dict[int, float]:
    """Expected TTFT on each usable instance if it serves first come, first served: all its work, then this."""
    request = ChoiceRequest(flight.arrival.input_tokens, CHUNK_TOKENS, flight.slo_s)
    ttft_s = {}
    for index in sight.usable:
        seen = estimate(request, sight.view(flight, index, depths[index]), _NO_RULE)
        ttft_s[index] = seen.load_s + seen.own_s
    return ttft_s
