"""A burst: in the middle of a workload, part of the traffic turns to one hot prefix."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span


@dataclass(frozen=True, slots=True)
class Hotspot(Shape):
    """`share` of the requests between the fractions `start` and `end` of the workload ask the hot prefix."""

    share: float = 0.6
    start: float = 0.33
    end: float = 0.67
    prefix_tokens: int = 8192
    tail_tokens: int = 128

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if not self.start <= self.end <= 1 or self.share > 1:
            raise WorkloadError("a hotspot needs start <= end <= 1 and share <= 1")


def add_hotspot(requests: Sequence[TimedRequest], hotspot: Hotspot, seed: int = 0) -> list[TimedRequest]:
    """The same arrivals, with the hot requests' prompts replaced."""
    if not requests:
        return []
    rng = random.Random(f"hotspot/{seed}")
    first_s, span_s = requests[0].at_s, requests[-1].at_s - requests[0].at_s
    start_s, end_s = first_s + hotspot.start * span_s, first_s + hotspot.end * span_s
    prefix = Span(f"hotspot.{seed}", hotspot.prefix_tokens)

    def heat(request: TimedRequest) -> TimedRequest:
        tail = Span(f"hotspot.{seed}.{request.request_id}", hotspot.tail_tokens)
        if request.messages:
            messages = (Message("system", (prefix,)), Message("user", (tail,)))
            return replace(request, messages=messages, session="hotspot")
        return replace(request, prompt=(prefix, tail), session="hotspot")

    return [
        # The draw comes last: only requests within the window use up chance.
        heat(request) if start_s <= request.at_s <= end_s and rng.random() < hotspot.share else request
        for request in requests
    ]
