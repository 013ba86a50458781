"""The JSON that vLLM answers with: whole responses and the chunks of a stream.

A stream's chunks leave out what vLLM leaves out: the fields that it never sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_JSON = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"


def sse(chunk: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + _JSON.encode(chunk) + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    """Token counts; those of a finished request say how many prompt tokens were cached."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return counts


class ChatShape:
    """Responses and chunks of /v1/chat/completions; `tool` turns text into arguments of that call."""

    def __init__(self, reply_id: str, model: str, created: int, role: str, tool: str | None) -> None:
        self._tool = tool
        self._role = role
        self._call_id = f"chatcmpl-tool-{reply_id}"
        self._head = {"id": reply_id, "created": created, "model": model}

    def opening(self, choice: int, prompt_ids: list[int] | None) -> dict[str, Any] | None:
        """The chunk that comes first: the role, and the prompt's ids if they are wanted."""
        delta = {"role": self._role, "content": ""}
        row = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._chunk([row]), "prompt_token_ids": prompt_ids}

    def chunk(
        self, choice: int, text: str, ids: list[int] | None, first: bool, finish: str | None, stop: str | None
    ) -> dict[str, Any]:
        """The chunk of some new text; with `finish` it is the choice's last."""
        delta: dict[str, Any] = {"content": text}
        if self._tool is not None:
            call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
            if first:
                named = {"name": self._tool, "arguments": text}
                call = {"id": f"{self._call_id}-{choice}", "type": "function", "index": 0, "function": named}
            delta = {"tool_calls": [call]}
        row = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            row["stop_reason"] = stop
        row["token_ids"] = ids
        return self._chunk([row])

    def usage_chunk(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk with the request's usage, after the last choice's."""
        return {**self._chunk([]), "usage": counts}

    def whole(
        self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, Any], prompt_ids: list[int] | None
    ) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        head = {"object": "chat.completion", **self._head}
        tail = {"service_tier": None, "system_fingerprint": None, "usage": counts, "prompt_logprobs": None}
        return {
            **head,
            "choices": list(rows),
            **tail,
            "prompt_token_ids": prompt_ids,
            "kv_transfer_params": None,
        }

    def row(
        self, choice: int, text: str, ids: list[int] | None, finish: str, stop: str | None, prompt_ids: Any
    ) -> dict[str, Any]:
        """One choice of a whole answer."""
        calls: list[dict[str, Any]] = []
        if self._tool is not None:
            function = {"name": self._tool, "arguments": text}
            calls = [{"id": f"{self._call_id}-{choice}", "type": "function", "function": function}]
        message = {
            "role": self._role,
            "content": "" if calls else text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": calls,
            "reasoning": None,
        }
        ending = {"logprobs": None, "finish_reason": finish, "stop_reason": stop, "token_ids": ids}
        return {"index": choice, "message": message, **ending}

    def _chunk(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._head["id"],
            "object": "chat.completion.chunk",
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": rows,
        }


class CompletionShape:
    """Responses and chunks of /v1/completions."""

    def __init__(self, reply_id: str, model: str, created: int) -> None:
        self._head = {"id": reply_id, "object": "text_completion", "created": created, "model": model}
        self._prompt_ids: list[int] | None = None

    def opening(self, choice: int, prompt_ids: list[int] | None) -> dict[str, Any] | None:
        """Completions open with their first text; the prompt's ids ride on it."""
        self._prompt_ids = prompt_ids
        return None

    def chunk(
        self, choice: int, text: str, ids: list[int] | None, first: bool, finish: str | None, stop: str | None
    ) -> dict[str, Any]:
        """The chunk of some new text; with `finish` it is the choice's last."""
        row = {
            "index": choice,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": stop,
            "prompt_token_ids": self._prompt_ids if first else None,
            "token_ids": ids,
        }
        return {**self._head, "choices": [row]}

    def usage_chunk(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk with the request's usage, after the last choice's."""
        return {**self._head, "choices": [], "usage": counts}

    def whole(
        self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, Any], prompt_ids: list[int] | None
    ) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        tail = {"service_tier": None, "system_fingerprint": None, "usage": counts, "kv_transfer_params": None}
        return {**self._head, "choices": list(rows), **tail}

    def row(
        self, choice: int, text: str, ids: list[int] | None, finish: str, stop: str | None, prompt_ids: Any
    ) -> dict[str, Any]:
        """One choice of a whole answer."""
        ending = {"logprobs": None, "finish_reason": finish, "stop_reason": stop, "token_ids": ids}
        return {
            "index": choice,
            "text": text,
            **ending,
            "prompt_logprobs": None,
            "prompt_token_ids": prompt_ids,
        }


Shape = ChatShape | CompletionShape
