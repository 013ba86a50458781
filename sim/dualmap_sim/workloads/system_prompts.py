"""Popular system prompts, each before text of its own; their popularity may move."""

import random
from dataclasses import dataclass

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Traffic, Zipf, draw_tokens


@dataclass(frozen=True, slots=True)
class SystemPromptsShape(Shape):
    """Sizes in tokens; a system prompt of 4,096 is 8 chunks."""

    prompts: int = 24
    skew: float = 1.0
    system_tokens: int = 4096
    user_tokens: int = 2048
    user_sigma: float = 1.0
    max_user_tokens: int = 32_768
    answer_tokens: int = 200


@dataclass(frozen=True, slots=True)
class DriftShape(SystemPromptsShape):
    """Every `drift_s` another order of popularity: what was hot is not, and something else is."""

    prompts: int = 96
    drift_s: float = 180.0

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if not self.drift_s > 0:
            raise WorkloadError("drift_s must be above 0")


def system_prompts(traffic: Traffic, shape: SystemPromptsShape) -> list[TimedRequest]:
    """Make requests of a system prompt each, and a user's text that nobody else sends."""
    return _requests("system-prompts", traffic, shape, None)


def drift(traffic: Traffic, shape: DriftShape) -> list[TimedRequest]:
    """The same, under an order of popularity that changes."""
    return _requests("drift", traffic, shape, shape.drift_s)


def _requests(
    name: str, traffic: Traffic, shape: SystemPromptsShape, drift_s: float | None
) -> list[TimedRequest]:
    rng = traffic.rng(name)
    popularity = Zipf(shape.prompts, shape.skew)
    order = list(range(shape.prompts))
    period = 0
    requests: list[TimedRequest] = []
    for index, at_s in enumerate(traffic.arrivals(rng)):
        if drift_s is not None and int(at_s / drift_s) != period:
            period = int(at_s / drift_s)
            random.Random(f"{name}/{traffic.seed}/{period}").shuffle(order)
        prefix = f"{name}.{traffic.seed}"
        system = Span(f"{prefix}.system.{order[popularity.pick(rng)]}", shape.system_tokens)
        tokens = draw_tokens(rng, shape.user_tokens, shape.user_sigma, 16, shape.max_user_tokens)
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"{name}-{index}",
                output_tokens=draw_tokens(rng, shape.answer_tokens, 0.6, 1, 4096),
                messages=(
                    Message("system", (system,)),
                    Message("user", (Span(f"{prefix}.{index}.user", tokens),)),
                ),
            )
        )
    return requests
