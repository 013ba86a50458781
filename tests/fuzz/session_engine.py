"""The engine of the session machine: its answer is a function of the prompt, and the rules say when it says how much.

Request N is answered with the tokens N.0 N.1 and so on, `LENGTH` of them; asked for the rest of an answer, it goes on
behind the tokens that it is given. A token is a word, and token ids say which one it is.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualmap_worker.errors import EngineLostError

LENGTH = 5
"""Tokens of an answer."""
_QUESTION, _WORD = 1_000, 100_000
"""Where the ids of the prompts' tokens and of the answers' begin."""


def question(number: int) -> str:
    """The prompt of request N as text: one token."""
    return f"q{number}"


def answer(number: int, length: int = LENGTH) -> str:
    """What it is answered, or the beginning of it."""
    return "".join(f" {number}.{place}" for place in range(length))


def tokens_of(text: str) -> list[int]:
    """The ids of a text's tokens."""
    ids = []
    for word in text.split():
        number, _, place = word.removeprefix("q").partition(".")
        ids.append(_WORD + int(number) * LENGTH + int(place) if place else _QUESTION + int(number))
    return ids


def ask(number: int, form: str, streamed: bool, usage: bool) -> bytes:
    """The body of request N: its prompt as `ids`, as `text` or as a `chat`."""
    forms: dict[str, dict[str, Any]] = {
        "ids": {"prompt": tokens_of(question(number))},
        "text": {"prompt": question(number)},
        "chat": {"messages": [{"role": "user", "content": question(number)}]},
    }
    options = {"stream_options": {"include_usage": True}} if usage else {}
    return json.dumps({**forms[form], "max_tokens": LENGTH, "stream": streamed, **options}).encode()


def number_of(body: bytes) -> int | None:
    """Which request's body this is, or the rest's of its answer; None for what asks for tokens."""
    asked = json.loads(body)
    return _prompt_ids(asked)[0] - _QUESTION if "max_tokens" in asked else None


def _prompt_ids(asked: dict[str, Any]) -> list[int]:
    if "messages" in asked:
        return tokens_of(" ".join(message["content"] for message in asked["messages"]))
    prompt = asked["prompt"]
    return tokens_of(prompt) if isinstance(prompt, str) else list(prompt)


@dataclass(eq=False)
class Call:
    """A request inside an engine. What it says next comes from `left`; `says` is what it has said; None ends it."""

    number: int
    left: list[bytes]
    is_stream: bool = True
    says: "asyncio.Queue[bytes | Exception | None]" = field(default_factory=asyncio.Queue)
    status: int = 200
    headers: Sequence[tuple[str, str]] = (("content-type", "text/event-stream"),)
    over: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self.says.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def speak(self, pieces: int) -> None:
        """The next pieces of its answer, as far as there are any."""
        said, self.left = self.left[:pieces], self.left[pieces:]
        for piece in said:
            self.says.put_nowait(piece)

    def end(self) -> None:
        """Say the rest."""
        self.speak(len(self.left))
        self.over = True
        self.says.put_nowait(None)

    def die(self, how: str) -> None:
        """Break off: between two pieces, in the middle of one, or saying so."""
        self.over = True
        if how == "within" and self.left:
            self.says.put_nowait(self.left[0][: len(self.left[0]) // 2])
        if how == "saying so":
            self.says.put_nowait(b'data: {"error": {"message": "the core died", "code": 500}}\n\n')
        self.says.put_nowait(EngineLostError("gone"))


class ScriptedEngine:
    """The engine's end of a worker."""

    url = "http://engine"

    def __init__(self, name: str) -> None:
        self._ids = (f"{name}-{number}" for number in itertools.count())
        self.calls: list[Call] = []
        self.tokenizes = "at once"
        """What becomes of requests for a text's tokens: answered `at once`, `dies`, or `hangs`."""
        self.misread: list[bytes] = []
        """Requests for what is not a whole answer, nor the rest of one."""

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Any = (), body: bytes = b""
    ) -> AsyncIterator[Call]:
        call = self._tokenize(body) if path == "/tokenize" else self._generate(body)
        self.calls.append(call)
        try:
            yield call
        finally:
            self.calls.remove(call)

    def _tokenize(self, body: bytes) -> Call:
        ids = _prompt_ids(json.loads(body))
        call = Call(-1, [json.dumps({"tokens": ids}).encode()], is_stream=False)
        if self.tokenizes == "at once":
            call.end()
        elif self.tokenizes == "dies":
            call.die("between")
        return call

    def _generate(self, body: bytes) -> Call:
        asked = json.loads(body)
        first, *seen = _prompt_ids(asked)
        number = first - _QUESTION
        if seen != tokens_of(answer(number, len(seen))) or asked["max_tokens"] != LENGTH - len(seen):
            self.misread.append(body)
        is_chat = "messages" in asked
        if is_chat and seen and not (asked["continue_final_message"] and not asked["add_generation_prompt"]):
            self.misread.append(body)
        wants_usage = asked.get("stream_options", {}).get("include_usage", False)
        return Call(number, _pieces(next(self._ids), number, len(seen), is_chat, wants_usage))


def _pieces(answer_id: str, number: int, start: int, is_chat: bool, wants_usage: bool) -> list[bytes]:
    """The events of a stream from a token on. Of every other request the last token comes with its finish reason."""
    common = {"id": answer_id, "created": 7 + start}
    choices: list[list[dict[str, Any]]] = []
    for place in range(start, LENGTH):
        text = f" {number}.{place}"
        said = {"delta": {"content": text}} if is_chat else {"text": text}
        choices.append([{"index": 0, **said, "finish_reason": None}])
    if number % 2:
        choices[-1][0]["finish_reason"] = "length"
    else:
        empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        choices.append([{"index": 0, **empty, "finish_reason": "length"}])
    if is_chat:
        opening = {"delta": {"role": "assistant", "content": ""}}
        choices.insert(0, [{"index": 0, **opening, "finish_reason": None}])
    chunks = [{**common, "choices": choice} for choice in choices]
    if wants_usage:
        usage = {"prompt_tokens": 1 + start, "completion_tokens": LENGTH - start}
        chunks.append({**common, "choices": [], "usage": {**usage, "total_tokens": 1 + LENGTH}})
    return [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
