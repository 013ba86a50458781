"""Tool agents: a long shared tool prompt, many short steps over a growing context.

A step's prompt ends in what the agent just observed (a page, a file); the next step keeps only its note of
it. That is why long contexts and many steps still leave two fifths of the prompts new: the statistics aim at
8,596 input and 182 output tokens with 59 % reusable, those of Mooncake's tool-and-agent trace.
"""

from dataclasses import dataclass, field

from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Sessions, Shape, Traffic, Zipf, draw_tokens


@dataclass(frozen=True, slots=True)
class AgentsShape(Shape):
    """Sizes in tokens; `step_s` is the least mean time between two steps of one agent."""

    agents: int = 16
    skew: float = 1.0
    tools_tokens: int = 3400
    task_tokens: int = 400
    note_tokens: int = 150
    observation_tokens: int = 2850
    answer_tokens: int = 182
    steps_mean: float = 8.0
    step_s: float = 5.0
    max_steps: int = 60


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
            tools = Span(f"agents.{traffic.seed}.tools.{popularity.pick(rng)}", shape.tools_tokens)
            task = Span(f"{run.name}.task", draw_tokens(rng, shape.task_tokens, 0.6, 16, 4096))
            run.messages += [Message("system", (tools,)), Message("user", (task,))]
        step = f"{run.name}.{run.step}"
        seen_tokens = draw_tokens(rng, shape.observation_tokens, 0.9, 16, 65_536)
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
