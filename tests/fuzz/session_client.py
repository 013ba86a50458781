"""The client of the session machine: what it was sent, and whether that is its answer, whole and once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dualmap_router.errors import ApiError
from dualmap_router.http_message import Pairs

from .session_engine import LENGTH, answer


class ClientSide:
    """The response of one request, as the router writes it; a client reads as fast as it is written to."""

    full = False

    def __init__(self, number: int, wants_usage: bool) -> None:
        self.number = number
        self.wants_usage = wants_usage
        self.started = False
        self.body = b""
        self.outcomes: list[str] = []
        """How its answer ended; it must end once."""

    def send(self, status: int, headers: Pairs, body: bytes) -> None:
        assert not self.started, "a second head"
        self.body += body
        self.outcomes.append("end" if status == 200 else f"{status}")

    def fail(self, error: ApiError, headers: Pairs = ()) -> None:
        assert not self.started
        self.outcomes.append(f"{error.status}")

    def start(self, status: int, headers: Pairs) -> None:
        assert status == 200
        assert not (self.started or self.outcomes), "a second head"
        self.started = True

    def write(self, chunk: bytes) -> None:
        assert self.started
        assert not self.outcomes, "text behind the end"
        self.body += chunk

    def end(self) -> None:
        self.outcomes.append("broken" if b'{"error"' in self.body else "end")

    def abort(self) -> None:
        self.outcomes.append("aborted")

    async def room(self) -> None:
        raise AssertionError("it is never full")


@dataclass
class Reading:
    """A body as a client understands it."""

    text: str = ""
    heads: set[tuple[str, int]] = field(default_factory=set)
    finishes: list[str] = field(default_factory=list)
    usages: list[dict[str, int]] = field(default_factory=list)
    num_done: int = 0


def read(body: bytes) -> Reading:
    """All events, which must be whole, but for the error that ends a broken answer."""
    found = Reading()
    *events, rest = body.split(b"\n\n")
    assert not rest, "half of an event"
    for event in events:
        assert event.startswith(b"data: ")
        if event == b"data: [DONE]":
            found.num_done += 1
            continue
        chunk = json.loads(event[6:])
        if "error" not in chunk:
            assert not found.num_done, "something behind the end mark"
            _read_chunk(chunk, found)
    return found


def _read_chunk(chunk: dict[str, Any], found: Reading) -> None:
    found.heads.add((chunk["id"], chunk["created"]))
    found.usages += [chunk["usage"]] if chunk.get("usage") else []
    choices: Sequence[dict[str, Any]] = chunk["choices"]
    for choice in choices:
        found.text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
        found.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []


def check_answer(client: ClientSide) -> None:
    """So far it is the beginning of this client's answer; once it has ended well, all of it."""
    got = read(client.body)
    assert answer(client.number).startswith(got.text), (got.text, "not this request's text, or not once")
    assert len(got.heads) <= 1, "two answers' chunks"
    assert len(got.finishes) <= 1
    assert len(got.usages) <= client.wants_usage
    assert got.num_done <= 1
    if client.outcomes == ["end"]:
        assert got.text == answer(client.number), "less than its text"
        assert (got.finishes, got.num_done) == (["length"], 1)
        usage = {"prompt_tokens": 1, "completion_tokens": LENGTH, "total_tokens": 1 + LENGTH}
        assert got.usages == ([usage] if client.wants_usage else [])
