"""What is run: one policy at one rate, on the same fleet and workload on both sides."""

import random
from dataclasses import dataclass, replace

from dualmap.prefix import chunk_hashes, prefix_seed
from dualmap.types import ChoiceRule, Slo
from dualmap_sim.engine import EngineProfile
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload
from dualmap_sim.workloads.arrival import Arrival

POLICIES = ("dualmap", "least-loaded", "round-robin")
RATES_REQ_S = (2.8, 3.4, 4.0)
"""At most 4/s, with a model second a second: more, on two cores, would measure the cores. Nor is a model second
anything else: the services expect 10,000 tokens a second of an engine until they have seen it prefill, as fast as the
simulated one is unscaled; scaled, the live system begins with wrong estimates that the simulated one has not."""

NUM_INSTANCES = 8
NUM_ROUTERS = 2
SLO_S = 5.0
KV_BLOCKS = 200
"""Of 512 tokens, as everything that the simulator has: so few that documents are evicted between two questions."""
HOP_S = 0.0055
"""A hop of the live system on loopback, as this bench measures it on two busy cores; 0.0035 on idle ones."""
JITTER_S = 0.005
"""How much sooner or later a request may as well come."""
PROFILE = EngineProfile(block_size=512, num_kv_blocks=KV_BLOCKS)
POOL = "fidelity"
_SHAPE = {
    "system_tokens": 512,
    "document_tokens": 12_000,
    "max_document_tokens": 50_000,
    "answer_tokens": 24,
    "questions_mean": 2.0,
    "pause_s": 15.0,
}
# The live services' defaults, which the simulated ones are given.
_AHEAD_TOKENS = 2048
REPORT_S = 0.1
_TELEMETRY_S = 0.02
"""How old news gets: workers report every `REPORT_S`, and at once after a change, if no sooner than this again."""
PASS_S = 0.1


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison; the first `warm_up` requests are not counted."""

    policy: str
    rate_req_s: float
    warm_up: int
    count: int
    seed: int = 1

    def requests(self) -> list[TimedRequest]:
        """Questions about long documents, as completions: there a router's chunk is just an engine's block."""
        traffic = Traffic(self.rate_req_s, self.warm_up + self.count, seed=self.seed)
        return [
            replace(request, messages=(), prompt=tuple(request.spans()))
            for request in make_workload("documents", traffic, _SHAPE)
        ]

    def arrivals(self, requests: list[TimedRequest], seed: int) -> list[Arrival]:
        """The same with the very chunk hashes that the routers compute, and so the same keys and candidates.

        Each comes up to `JITTER_S` sooner or later, as `seed` draws it.
        """
        rng = random.Random(seed)
        pool_seed = prefix_seed(POOL)
        arrivals = [
            Arrival(
                at_s=max(request.at_s + rng.uniform(-JITTER_S, JITTER_S), 0.0),
                request_id=request.request_id,
                input_tokens=request.input_tokens,
                output_tokens=request.output_tokens,
                chunks=tuple(chunk_hashes("".join(s.text() for s in request.prompt).encode(), pool_seed)),
            )
            for request in requests
        ]
        return sorted(arrivals, key=lambda arrival: arrival.at_s)

    def setup(self, seed: int) -> FleetSetup:
        """The simulated fleet, under the live services' own settings; `seed` draws what hops take."""
        return FleetSetup(
            num_instances=NUM_INSTANCES,
            kv_blocks=KV_BLOCKS,
            slo=Slo(SLO_S),
            policy=self.policy,
            choice=ChoiceRule(policy=self.policy),
            model=PROFILE,
            ahead_tokens=_AHEAD_TOKENS,
            step_tokens=PROFILE.max_num_batched_tokens,
            max_running=PROFILE.max_num_seqs,
            num_routers=NUM_ROUTERS,
            telemetry_s=_TELEMETRY_S,
            names=tuple(f"worker-{number}" for number in range(1, NUM_INSTANCES + 1)),
            hop_s=HOP_S,
            seed=seed,
        )
