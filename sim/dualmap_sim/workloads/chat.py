"""Conversations over popular system prompts; a later turn's prompt holds the earlier turns."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from dualmap_sim.workloads.request import Message, TimedRequest
from dualmap_sim.workloads.shape import Shape
from dualmap_sim.workloads.text import Span
from dualmap_sim.workloads.traffic import Sessions, Traffic, Zipf, draw_tokens

Begin = Callable[[random.Random], tuple[str, str | None]]
"""Picks a conversation's system prompt and its tenant."""


@dataclass(frozen=True, slots=True)
class ChatShape(Shape):
    """Sizes in tokens; `think_s` is the least mean time between two turns of one conversation."""

    system_prompts: int = 24
    skew: float = 1.0
    system_tokens: int = 4096
    user_tokens: int = 200
    answer_tokens: int = 250
    turns_mean: float = 4.0
    think_s: float = 20.0
    max_input_tokens: int = 32_768


@dataclass(slots=True)
class _Conversation:
    name: str
    tenant: str | None
    messages: list[Message] = field(default_factory=list)
    input_tokens: int = 0
    turn: int = 0

    def say(self, role: str, key: str, tokens: int) -> None:
        self.messages.append(Message(role, (Span(key, tokens),)))
        self.input_tokens += tokens


def chat(traffic: Traffic, shape: ChatShape) -> list[TimedRequest]:
    """Make the conversations' requests in order of arrival."""
    popularity = Zipf(shape.system_prompts, shape.skew)
    return converse("chat", traffic, shape, lambda rng: (f"system.{popularity.pick(rng)}", None))


def converse(name: str, traffic: Traffic, shape: ChatShape, begin: Begin) -> list[TimedRequest]:
    """Conversations that each begin with the system prompt, and belong to the tenant, that `begin` picks.

    The engine's answers are not known beforehand, so the history holds made-up answers of the same length.
    """
    rng = traffic.rng(name)
    waiting: Sessions[_Conversation] = Sessions()
    requests: list[TimedRequest] = []
    started = 0
    for at_s in traffic.arrivals(rng):
        conversation = waiting.take(at_s)
        if conversation is None:
            system, tenant = begin(rng)
            conversation = _Conversation(f"{name}.{traffic.seed}.{started}", tenant)
            started += 1
            conversation.say("system", f"{name}.{traffic.seed}.{system}", shape.system_tokens)
        turn = f"{conversation.name}.{conversation.turn}"
        conversation.say("user", f"{turn}.user", draw_tokens(rng, shape.user_tokens, 0.8, 4, 8192))
        output_tokens = draw_tokens(rng, shape.answer_tokens, 0.6, 1, 4096)
        requests.append(
            TimedRequest(
                at_s=at_s,
                request_id=f"{name}-{len(requests)}",
                output_tokens=output_tokens,
                messages=tuple(conversation.messages),
                session=conversation.name,
                tenant=conversation.tenant,
            )
        )
        conversation.say("assistant", f"{turn}.answer", output_tokens)
        conversation.turn += 1
        # Geometric turns: without memory, so that a short run has the statistics of a long one.
        goes_on = rng.random() < 1 - 1 / shape.turns_mean
        # Room for the longest next question keeps the bound whatever is drawn.
        if goes_on and conversation.input_tokens + 8192 <= shape.max_input_tokens:
            waiting.park(conversation, at_s + rng.expovariate(1) * shape.think_s)
    return requests
