"""Continuing a stream whose engine died: from what the client has seen to a request for the rest. Pure.

A chat gets the text so far as its last message, left open (vLLM's `continue_final_message`); a completion gets it as
token ids behind its prompt's, since tokens must not merge across the seam. The rest then comes as a stream of its own,
whose chunks are rewritten into the first one's: same id, no second opening, usage of both parts together.

Not every answer can be continued: several choices, tool calls or reasoning half-way, output under a grammar, log
probabilities that count characters. Those end with an error event.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DONE = b"[DONE]"
# The grammar would begin anew in the middle, or the figures refer to an answer in one piece.
_UNSUPPORTED = (
    "echo", "suffix", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "prompt_logprobs", "use_beam_search",
)  # fmt: skip


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    audio: Any = None

    @property
    def is_text(self) -> bool:
        return not (
            self.tool_calls or self.function_call or self.reasoning or self.reasoning_content or self.audio
        )


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str = ""
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str
    created: int
    choices: list[_Choice]
    usage: dict[str, Any] | None = None


_chunk = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a client has seen of a stream."""

    id: str
    created: int
    text: str
    is_finished: bool
    """The last text came with its finish reason: only the end mark, and usage if it was asked for, are missing."""
    has_usage: bool = False
    last: bytes = field(default=b"", compare=False)
    """The newest event: what is common to all of them can be taken from it."""


def is_complete(data: bytes) -> bool:
    """Whether these bytes of a stream are all of it: its end mark came, and its engine died behind that."""
    events, rest = _events(data)
    return not rest and bool(events) and events[-1] == _DONE


def read_so_far(data: bytes) -> SoFar | None:
    """What these bytes of a stream say; None when they cannot be continued."""
    events, rest = _events(data)
    if rest or not events:
        return None
    texts: list[str] = []
    first: _Chunk | None = None
    is_finished = has_usage = False
    for event in events:
        if event == _DONE:
            return None
        try:
            chunk = _chunk.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        first = first or chunk
        has_usage = has_usage or (chunk.usage is not None and not chunk.choices)
        for choice in chunk.choices:
            if choice.index or not choice.delta.is_text:
                return None
            texts.append(choice.text or choice.delta.content or "")
            is_finished = is_finished or choice.finish_reason is not None
    if first is None:
        return None
    return SoFar(first.id, first.created, "".join(texts), is_finished, has_usage, events[-1])


def can_continue(body: Mapping[str, Any]) -> bool:
    """Whether a request's answer can be continued at all."""
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        return False
    if body.get("response_format") not in (None, {"type": "text"}):
        return False
    # A completion with messages, which engines overlook, would go on as a chat: with its text from the start.
    if "messages" in body and ("prompt" in body or "prompt_embeds" in body):
        return False
    if "messages" not in body and body.get("logprobs") is not None:
        return False
    return not any(body.get(name) for name in _UNSUPPORTED)


def prompt_of(body: Mapping[str, Any]) -> str | Sequence[int] | None:
    """The one prompt of a completion: its text or its token ids; None if there are several, or embeddings."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) or (
        isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt)
    ):
        found: str | Sequence[int] = prompt
        return found
    return None


def continued(
    body: Mapping[str, Any], text: str, text_ids: Sequence[int], prompt_ids: Sequence[int] = ()
) -> dict[str, Any] | None:
    """The request for the rest of an answer; None when its token limit leaves no rest.

    `text_ids` are the tokens of `text`; `prompt_ids` those of a completion's prompt.
    """
    rest = dict(body)
    for limit in ("max_tokens", "max_completion_tokens"):
        if isinstance(rest.get(limit), int):
            rest[limit] -= len(text_ids)
            if rest[limit] < 1:
                return None
    if isinstance(rest.get("min_tokens"), int):
        rest["min_tokens"] = max(0, rest["min_tokens"] - len(text_ids))
    if "messages" not in rest:
        return {**rest, "prompt": [*prompt_ids, *text_ids]}
    if not text:
        return rest
    *others, last = rest["messages"]
    if rest.get("continue_final_message") and isinstance(last.get("content"), str):
        rest["messages"] = [*others, {**last, "content": last["content"] + text}]
    else:
        rest["messages"] = [*rest["messages"], {"role": "assistant", "content": text}]
    return {**rest, "add_generation_prompt": False, "continue_final_message": True}


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client asked for a stream's usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def conclusion(so_far: SoFar, usage: tuple[int, int] | None) -> bytes:
    """What is missing behind the whole text of an answer: why it ends, its usage, the end mark.

    `usage` is (prompt tokens, completion tokens), None where nobody asked.
    """
    chunk = msgspec.json.decode(so_far.last)
    out = b""
    if not so_far.is_finished:
        # No rest was left, so its token limit ended it.
        empty: dict[str, Any] = (
            {"delta": {}} if chunk.get("object") == "chat.completion.chunk" else {"text": ""}
        )
        end = {"index": 0, **empty, "logprobs": None, "finish_reason": "length"}
        out += b"data: " + msgspec.json.encode({**chunk, "choices": [end]}) + b"\n\n"
    if usage is not None and not so_far.has_usage:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        out += b"data: " + msgspec.json.encode({**chunk, "choices": [], "usage": counts}) + b"\n\n"
    return out + b"data: [DONE]\n\n"


class Splice:
    """Rewrites the stream of the rest into a continuation of what the client has seen."""

    def __init__(self, so_far: SoFar, num_tokens: int) -> None:
        """`num_tokens` were seen: the rest's engine counted them as its prompt."""
        self._head = {"id": so_far.id, "created": so_far.created}
        self._num_tokens = num_tokens
        self._partial = b""

    def rewrite(self, data: bytes) -> bytes:
        """The bytes for the client; an event that is not complete yet waits for its end."""
        events, self._partial = _events(self._partial + data)
        return b"".join([self._event(event) for event in events])

    def _event(self, event: bytes) -> bytes:
        if event == _DONE:
            return b"data: [DONE]\n\n"
        try:
            chunk = msgspec.json.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b"data: " + event + b"\n\n"
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if isinstance(choices, list):
            chunk |= self._head
            chunk.pop("prompt_token_ids", None)
            silent = [_says_nothing(choice) for choice in choices]
            if silent and all(silent):
                return b""
            if isinstance(chunk.get("usage"), dict):
                self._correct(chunk["usage"])
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _correct(self, usage: dict[str, Any]) -> None:
        usage["prompt_tokens"] = max(_count(usage, "prompt_tokens") - self._num_tokens, 0)
        usage["completion_tokens"] = _count(usage, "completion_tokens") + self._num_tokens
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and "cached_tokens" in details:
            details["cached_tokens"] = min(_count(details, "cached_tokens"), usage["prompt_tokens"])


def _count(usage: Mapping[str, Any], name: str) -> int:
    found = usage.get(name)
    return found if isinstance(found, int) else 0


def _says_nothing(choice: Any) -> bool:
    """Whether it is the opening of a chat: the client has had one. Takes a role off what says more."""
    if not isinstance(choice, dict):
        return False
    choice.pop("prompt_token_ids", None)
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("finish_reason") is not None:
        return False
    role = delta.pop("role", None)
    return role is not None and not any(delta.values())


def _events(data: bytes) -> tuple[list[bytes], bytes]:
    """(payloads of the complete events, what comes behind the last of them)."""
    pieces = _EVENT_END.split(data)
    rest = pieces.pop()
    payloads = (
        b"\n".join(line[5:].strip() for line in piece.splitlines() if line.startswith(b"data:"))
        for piece in pieces
    )
    return [payload for payload in payloads if payload], rest
