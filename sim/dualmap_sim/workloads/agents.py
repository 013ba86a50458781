"""Tool agents: a few hot tool prompts before short tasks, and sessions over documents of any length.

The statistics aim at Mooncake's tool-and-agent trace (23,608 requests): input mean 8,590, deviation 10,994,
quartiles 3,227, 6,345 and 7,470; of it not seen before mean 2,834, deviation 8,561, quartiles 266, 560 and
1,103; output mean 182, quartiles 13, 30 and 356; 59 % of the blocks reusable, 76 % of the requests with half their
prompt or more seen before; prefix keys of 2, 6 and 13 chunks for 45, 15 and 38 % of the requests. Sources: the
trace's published analysis (the README of NVIDIA's data generator for Dynamo), the Mooncake and DualMap papers. How
long a session waits between its steps is not published: `step_s` is a choice.
"""

from dataclasses import dataclass, field
from random import Random

from dualmap_sim.workloads.errors import WorkloadError
from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Sessions, Traffic, draw_tokens

_GOLDEN = 0.6180339887498949
_LONGEST_TOKENS = 120_000


@dataclass(frozen=True, slots=True)
class AgentsShape(Shape):
    """Sizes in tokens; `step_s` is the least mean time between two steps of a session."""

    long_share: float = 0.388
    long_tokens: int = 6160
    short_share: float = 0.149
    short_tokens: int = 2600
    task_tokens: int = 420
    task_sigma: float = 1.0
    document_tokens: int = 11_000
    document_sigma: float = 1.15
    steps_mean: float = 2.1
    step_s: float = 30.0
    max_steps: int = 60

    def __post_init__(self) -> None:
        # Spelled out: a slotted dataclass is a new class, which the plain super() does not know.
        Shape.__post_init__(self)
        if self.long_share + self.short_share > 1:
            raise WorkloadError("long_share and short_share must not be more than 1 together")


@dataclass(slots=True)
class _Session:
    name: str
    messages: list[Message] = field(default_factory=list)
    step: int = 0


def agents(traffic: Traffic, shape: AgentsShape) -> list[TimedRequest]:
    """Make the requests in order of arrival."""
    rng = traffic.rng("agents")
    prefix = f"agents.{traffic.seed}"
    waiting: Sessions[_Session] = Sessions()
    requests: list[TimedRequest] = []
    for index, at_s in enumerate(traffic.arrivals(rng)):
        # Evenly over the requests instead of by chance: some thousand then have the shares that are meant.
        family = (index * _GOLDEN) % 1.0
        task = Message("user", (Span(f"{prefix}.task.{index}", _task_tokens(rng, shape)),))
        session: str | None = None
        if family < shape.long_share:
            messages = [_tools(f"{prefix}.long", shape.long_tokens), task]
        elif family < shape.long_share + shape.short_share:
            messages = [_tools(f"{prefix}.short", shape.short_tokens), task]
        else:
            run = waiting.take(at_s) or _new_session(f"{prefix}.{index}", rng, shape)
            messages, session = [*run.messages, task], run.name
            _go_on(run, messages, waiting, at_s, rng, shape)
        output_tokens = _output_tokens(rng)
        if session is not None:
            messages_after = run.messages
            messages_after.append(Message("assistant", (Span(f"{prefix}.answer.{index}", output_tokens),)))
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"agents-{index}",
                output_tokens=output_tokens,
                messages=tuple(messages),
                session=session,
            )
        )
    return requests


def _tools(name: str, tokens: int) -> Message:
    return Message("system", (Span(name, tokens),))


def _new_session(name: str, rng: Random, shape: AgentsShape) -> _Session:
    tokens = draw_tokens(rng, shape.document_tokens, shape.document_sigma, 330, _LONGEST_TOKENS)
    return _Session(name, [Message("system", (Span(f"{name}.document", tokens),))])


def _go_on(
    run: _Session,
    messages: list[Message],
    waiting: Sessions[_Session],
    at_s: float,
    rng: Random,
    shape: AgentsShape,
) -> None:
    """Let the session take another step later, or not."""
    run.messages = list(messages)
    run.step += 1
    if run.step < shape.max_steps and rng.random() < 1 - 1 / shape.steps_mean:
        waiting.park(run, at_s + rng.expovariate(1) * shape.step_s)


def _task_tokens(rng: Random, shape: AgentsShape) -> int:
    return draw_tokens(rng, shape.task_tokens, shape.task_sigma, 16, 8192)


def _output_tokens(rng: Random) -> int:
    """Half of the answers are a call, the other half a text."""
    if rng.random() < 0.55:
        return draw_tokens(rng, 22, 0.7, 1, 2000)
    return draw_tokens(rng, 377, 0.55, 1, 2000)
