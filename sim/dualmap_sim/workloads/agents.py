"""Tool agents: shared tool prompts of several lengths, many short steps over a growing context.

A step's prompt ends in what the agent just observed (a page, a file), whose size has a long tail; the next step
keeps its task and a note of what it saw. Two agents are popular, one with a long tool prompt and one with a short
one; the others are many. The statistics aim at those of Mooncake's tool-and-agent trace: 8,596 input and 182
output tokens, 59 % of the blocks reusable, 76 % of the requests with half their prompt or more seen before, and
prefix keys of 2, 6 and 13 chunks for 45, 15 and 38 % of the requests.
"""

from dataclasses import dataclass, field

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Sessions, Traffic, Zipf, draw_tokens

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class AgentsShape(Shape):
    """Sizes in tokens; `step_s` is the least mean time between two steps of one agent."""

    long_share: float = 0.388
    long_tokens: int = 6400
    short_share: float = 0.149
    short_tokens: int = 2800
    agents: int = 200
    skew: float = 0.6
    tools_tokens: int = 1200
    task_tokens: int = 1350
    task_sigma: float = 1.0
    note_tokens: int = 150
    observation_tokens: int = 2650
    observation_sigma: float = 1.6
    answer_tokens: int = 182
    steps_mean: float = 5.0
    step_s: float = 5.0
    max_steps: int = 60

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if self.long_share + self.short_share > 1:
            raise WorkloadError("long_share and short_share must not be more than 1 together")


@dataclass(slots=True)
class _Run:
    name: str
    messages: list[Message] = field(default_factory=list)
    step: int = 0


def agents(traffic: Traffic, shape: AgentsShape) -> list[TimedRequest]:
    """Make the agents' steps in order of arrival."""
    rng = traffic.rng("agents")
    popularity = Zipf(shape.agents, shape.skew)
    waiting: Sessions[_Run] = Sessions()
    requests: list[TimedRequest] = []
    started = 0
    for at_s in traffic.arrivals(rng):
        run = waiting.take(at_s)
        if run is None:
            run = _Run(f"agents.{traffic.seed}.{started}")
            started += 1
            # Evenly over the sessions instead of by chance: some thousand requests then have the shares that are meant.
            family = (started * _GOLDEN) % 1.0
            tools = _tools(f"agents.{traffic.seed}.tools", family, shape, popularity.pick(rng))
            task = Span(f"{run.name}.task", draw_tokens(rng, shape.task_tokens, shape.task_sigma, 16, 65_536))
            run.messages += [Message("system", (tools,)), Message("user", (task,))]
        step = f"{run.name}.{run.step}"
        seen_tokens = draw_tokens(rng, shape.observation_tokens, shape.observation_sigma, 16, 65_536)
        output_tokens = draw_tokens(rng, shape.answer_tokens, 0.7, 1, 2048)
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"agents-{len(requests)}",
                output_tokens=output_tokens,
                messages=(*run.messages, Message("user", (Span(f"{step}.seen", seen_tokens),))),
                session=run.name,
            )
        )
        run.messages += [
            Message("assistant", (Span(f"{step}.answer", output_tokens),)),
            Message("user", (Span(f"{step}.note", shape.note_tokens),)),
        ]
        run.step += 1
        if run.step < shape.max_steps and rng.random() < 1 - 1 / shape.steps_mean:
            waiting.park(run, at_s + rng.expovariate(1) * shape.step_s)
    return requests


def _tools(prefix: str, family: float, shape: AgentsShape, other: int) -> Span:
    if family < shape.long_share:
        return Span(f"{prefix}.long", shape.long_tokens)
    if family < shape.long_share + shape.short_share:
        return Span(f"{prefix}.short", shape.short_tokens)
    return Span(f"{prefix}.{other}", shape.tools_tokens)
