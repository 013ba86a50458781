"""Mooncake's Conductor: the smallest expected TTFT over all instances.

Source: BASELINES.md: argmin of transfer + queue + prefill(len, prefix). Not modelled: the transfer of KV between
instances, which needs a store that stock engines do not have, so that the prefix counts where it is; and the early
rejection of what would miss its SLO, since a comparison of capacity has to serve everybody.
"""

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight
from dualmap_sim.policies.measures import fcfs_ttft_s


class Mooncake:
    """Queue plus own prefill."""

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """The instance with the smallest sum; ties go to the first."""
        ttft_s = fcfs_ttft_s(flight, sight, sight.depths(flight.arrival))
        return sight.choice(flight, min(ttft_s, key=ttft_s.__getitem__))
