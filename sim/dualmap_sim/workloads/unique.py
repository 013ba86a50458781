"""Prompts that share nothing: the workload where affinity has nothing to give."""

from dataclasses import dataclass

from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Traffic, draw_tokens


@dataclass(frozen=True, slots=True)
class UniqueShape(Shape):
    """Sizes in tokens; `sigma` is the spread of the log-normal prompt length."""

    input_tokens: int = 4096
    sigma: float = 0.8
    max_input_tokens: int = 65_536
    answer_tokens: int = 200


def unique(traffic: Traffic, shape: UniqueShape) -> list[TimedRequest]:
    """Make completions whose first block already differs from every other."""
    rng = traffic.rng("unique")
    requests: list[TimedRequest] = []
    for index, at_s in enumerate(traffic.arrivals(rng)):
        tokens = draw_tokens(rng, shape.input_tokens, shape.sigma, 16, shape.max_input_tokens)
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"unique-{index}",
                output_tokens=draw_tokens(rng, shape.answer_tokens, 0.6, 1, 4096),
                prompt=(Span(f"unique.{traffic.seed}.{index}", tokens),),
            )
        )
    return requests
