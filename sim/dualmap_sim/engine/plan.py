"""From a request to what it will say: how many tokens, which text, how it ends. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualmap_sim.engine.canonical import chat_prompt, completion_prompt
from dualmap_sim.engine.errors import bad_request
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.engine.protocol import ChatRequest, CompletionRequest, Sampling
from dualmap_sim.engine.sequence import FinishReason
from dualmap_sim.engine.text import BYTES_PER_TOKEN, EOS_TOKEN_ID, Answer, FixedOutput, Output, encode

_GARBAGE = b"?!# "
_EOS = EOS_TOKEN_ID.to_bytes(BYTES_PER_TOKEN, "little")


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """One answer, known before it is produced: the model only decides when its tokens come."""

    output: Output
    num_tokens: int
    finish: FinishReason
    stop_string: str | None = None
    num_chars: int | None = None

    def text(self, start: int, stop: int) -> str:
        """The text of tokens [start, stop), cut where a stop string begins."""
        if self.num_chars is None:
            return self.output.text(start, stop)
        before = len(self.output.text(0, start)) if start else 0
        return self.output.text(start, stop)[: max(0, self.num_chars - before)]


class _WithEos:
    """An answer that ends by itself: after its last token comes one without text."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._last = answer.natural_tokens

    def text(self, start: int, stop: int) -> str:
        """The text of tokens [start, stop)."""
        stop = min(stop, self._last)
        return self._answer.text(start, stop) if start < stop else ""

    def token_bytes(self, start: int, stop: int) -> bytes:
        """Tokens [start, stop) as 4 bytes each."""
        return self._answer.token_bytes(start, min(stop, self._last)) + (_EOS if stop > self._last else b"")


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """A request's tokenized prompt and its answers."""

    prompt: bytes
    choices: tuple[ChoicePlan, ...]
    tool: str | None = None
    tool_is_named: bool = False

    def finish_label(self, choice: int) -> str:
        """The finish_reason that a client reads."""
        if self.tool is not None and not self.tool_is_named:
            return "tool_calls"
        return self.choices[choice].finish.value


def plan_chat(request: ChatRequest, profile: EngineProfile, *, garbage: bool = False) -> RequestPlan:
    """Plan a chat; without a limit an answer ends by itself, as a model's does."""
    request.check()
    prompt = chat_prompt(
        request.messages,
        request.tools,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
    )
    tool, is_named = request.forced_tool
    if tool is None:
        return _plan(request, prompt, profile, garbage)
    output = FixedOutput(_arguments(tool).encode())
    room = _room(encode(prompt), profile)
    plan = ChoicePlan(output, min(output.num_tokens, room), FinishReason.STOP)
    return RequestPlan(encode(prompt), (plan,) * request.num_choices, str(tool["name"]), is_named)


def plan_completion(
    request: CompletionRequest, profile: EngineProfile, *, garbage: bool = False
) -> RequestPlan:
    """Plan a completion of a text or of token ids."""
    request.check()
    return _plan(request, completion_prompt(request.single_prompt()), profile, garbage)


def _plan(request: Sampling, prompt: bytes, profile: EngineProfile, garbage: bool) -> RequestPlan:
    tokens = encode(prompt)
    room = _room(tokens, profile)
    plans = tuple(
        _choice(request, Answer(prompt, choice), room, garbage) for choice in range(request.num_choices)
    )
    return RequestPlan(tokens, plans)


def _choice(request: Sampling, answer: Answer, room: int, garbage: bool) -> ChoicePlan:
    if request.max_tokens is not None:
        num_tokens, finish = min(request.max_tokens, room), FinishReason.LENGTH
        output: Output = answer
    else:
        num_tokens, finish = min(answer.natural_tokens + 1, room), FinishReason.STOP
        output = _WithEos(answer)
    if garbage:
        return ChoicePlan(FixedOutput(_GARBAGE * num_tokens), num_tokens, finish)
    if request.stops:
        text = output.text(0, num_tokens)
        found = [(text.find(stop), stop) for stop in request.stops if stop in text]
        if found:
            at, stop = min(found)
            # The answer ends with the token that completes the stop string.
            end = at + len(stop)
            needed = next(count for count in range(1, num_tokens + 1) if len(output.text(0, count)) >= end)
            return ChoicePlan(output, needed, FinishReason.STOP, stop, at)
    return ChoicePlan(output, num_tokens, finish)


def _room(tokens: bytes, profile: EngineProfile) -> int:
    """How many tokens fit after the prompt; ApiError if none does."""
    limit, length = profile.context_limit_tokens, len(tokens) // BYTES_PER_TOKEN
    if length >= limit:
        raise bad_request(
            f"This model's maximum context length is {limit} tokens. However, your prompt contains {length} "
            "input tokens. Please reduce the length of the input prompt.",
            "input_tokens",
        )
    return limit - length


def _arguments(function: Mapping[str, Any]) -> str:
    """Arguments that satisfy the function's schema as far as its required top-level properties go."""
    schema = function.get("parameters") or {}
    properties = schema.get("properties") or {}
    names = schema.get("required") or list(properties)[:1]
    return json.dumps({name: _example(properties.get(name) or {}) for name in names})


def _example(schema: Mapping[str, Any]) -> object:
    if schema.get("enum"):
        return schema["enum"][0]
    examples: dict[str, object] = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}
    return examples.get(str(schema.get("type")), "simulated")
