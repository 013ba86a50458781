"""The prompt that a request's JSON body stands for: what a chat template and a tokenizer would make of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dualmap_sim.engine.text import BYTES_PER_TOKEN, from_token_ids, matches

_JSON = msgspec.json.Encoder(order="sorted")
_END = b"<|end|>\n"


def _pad(text: bytes, filler: bytes) -> bytes:
    # Every part fills whole tokens, so that an answer that comes back as a message of the next turn is cut
    # into the tokens it was generated as, and its KV blocks are found again.
    return text + filler * (-len(text) % BYTES_PER_TOKEN)


def _header(role: str) -> bytes:
    return _pad(f"<|{role}|>\n".encode(), b"\n")


def _content(message: Mapping[str, Any]) -> bytes:
    content = message.get("content")
    if isinstance(content, str):
        text = content.encode()
    elif isinstance(content, Sequence):
        text = b"".join(_part(part) for part in content)
    else:
        text = b""
    extra = {key: value for key, value in message.items() if key not in ("role", "content") and value}
    return text + (_JSON.encode(extra) if extra else b"")


def _part(part: Any) -> bytes:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"]).encode()
    return _JSON.encode(part)


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> bytes:
    """Render a conversation; continuing leaves the last message open, as vLLM's option of that name does."""
    parts: list[bytes] = []
    if tools:
        parts += [_header("tools"), _pad(_JSON.encode(tools), b" "), _END]
    closed = messages[:-1] if continue_final_message else messages
    for message in closed:
        parts += [_header(str(message.get("role", "user"))), _pad(_content(message), b" "), _END]
    if continue_final_message and messages:
        parts += [_header(str(messages[-1].get("role", "user"))), _content(messages[-1])]
    elif add_generation_prompt:
        parts.append(_header("assistant"))
    return b"".join(parts)


def completion_prompt(prompt: str | Sequence[int]) -> bytes:
    """The prompt of a completion: its text, or the text of its token ids."""
    return prompt.encode() if isinstance(prompt, str) else from_token_ids(prompt)


def canonical_prompt(body: Mapping[str, Any]) -> bytes:
    """The prompt of a request body of /v1/chat/completions (it has messages) or /v1/completions (a prompt)."""
    if "messages" in body:
        return chat_prompt(
            body["messages"],
            body.get("tools"),
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
        )
    return completion_prompt(body["prompt"])


def answers(body: Mapping[str, Any], text: str, choice: int = 0) -> bool:
    """Whether `text` is, or begins, the right answer to a chat or completion body."""
    return matches(canonical_prompt(body), text, choice=choice)
