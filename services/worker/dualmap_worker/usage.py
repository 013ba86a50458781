"""Usage: what an engine says about tokens, read from the bytes that pass by.

The relay does not parse answers. Usage stands in one event near the end of a stream, or at the end of a
JSON body, so a substring test finds it. A worker that added `stream_options.include_usage` to a request
takes that event out again.
"""

import re
from dataclasses import dataclass

import msgspec

_MAX_TAIL_BYTES = 4096
_MAX_EVENT_BYTES = 1 << 20
_BLANK_LINES = (b"\n\n", b"\r\n\r\n")
_EVENT_ENDS = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
_DATA = re.compile(rb"^data:", re.MULTILINE)
_DELTA = re.compile(rb'"type"\s*:\s*"response\.[a-z_.]+\.delta"')
_RESPONSES = "/v1/responses"
# vLLM's API server outlives its engine core for a moment: it says so within the stream, with status 200.
_DEATH = re.compile(rb'^data: ?\{"error": ?\{.*"code": ?5\d\d\b.*\}\}\s*$')
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


_decoder = msgspec.json.Decoder(_Usage)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request as the engine counted them; `cached_tokens` is None where it did not say."""

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int


def find_usage(data: bytes) -> Usage | None:
    """The last usage object in a piece of JSON or SSE."""
    found = None
    for match in _USAGE.finditer(data):
        found = match.group(1)
    if found is None:
        return None
    try:
        usage = _decoder.decode(found)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    # Anthropic's input_tokens are what is left of the prompt beside these two.
    read = usage.cache_read_input_tokens
    beside = (read or 0) + (usage.cache_creation_input_tokens or 0)
    return Usage(
        prompt_tokens=usage.prompt_tokens or (usage.input_tokens or 0) + beside,
        cached_tokens=read if details is None else details.cached_tokens,
        output_tokens=usage.completion_tokens or usage.output_tokens or 0,
    )


def ask_usage(body: bytes) -> bytes:
    """A streaming request's body with usage asked for; the body has no `stream_options`."""
    closing = body.rindex(b"}")
    return body[:closing] + b',"stream_options":{"include_usage":true}}' + body[closing + 1 :]


class StreamTap:
    """Watches an SSE stream; passes whole events on, without the usage event if that is to be hidden.

    What an engine can send before its prefill is over waits for what it cannot: comments for data, and the
    events that open a stream of /v1/responses for the first delta.
    """

    def __init__(self, hide_usage: bool, path: str = "") -> None:
        self._hide = hide_usage
        self._partial = b""
        self._opening = b""
        self._begun = False
        self._begins = _DELTA if path.partition("?")[0] == _RESPONSES else _DATA
        self.usage: Usage | None = None
        self.died_of: str | None = None
        """What the engine said when it failed in the middle; what it said before has been passed on."""

    def feed(self, chunk: bytes) -> bytes:
        """What of the bytes so far may go on: everything up to the last complete event."""
        data = self._partial + chunk if self._partial else chunk
        if data.endswith(_BLANK_LINES):
            self._partial = b""
        else:
            end = max(data.rfind(blank) + len(blank) if blank in data else 0 for blank in _BLANK_LINES)
            if not end and len(data) > _MAX_EVENT_BYTES:
                end = len(data)
            self._partial, data = data[end:], data[:end]
        data = self._without_usage(data) if b'"usage"' in data else data
        data = self._before_death(data) if b'{"error"' in data else data
        return data if self._begun else self._begin(data)

    def finish(self) -> bytes:
        """What is left when the stream ends inside an event, or before it had begun."""
        rest, self._partial = self._opening + self._partial, b""
        return self._without_usage(rest)

    def _begin(self, data: bytes) -> bytes:
        """The opening and what is behind it, once the prefill must be over."""
        self._opening += data
        if self._begins.search(self._opening) is None and len(self._opening) <= _MAX_EVENT_BYTES:
            return b""
        opening, self._opening, self._begun = self._opening, b"", True
        return opening

    def _before_death(self, data: bytes) -> bytes:
        events = _EVENT_ENDS.split(data)
        for index, event in enumerate(events):
            if _DEATH.match(event.strip()):
                self.died_of = event.decode(errors="replace").strip()
                return b"".join(events[:index])
        return data

    def _without_usage(self, data: bytes) -> bytes:
        self.usage = find_usage(data) or self.usage
        if not self._hide:
            return data
        return b"".join(event for event in _EVENT_ENDS.split(data) if not _is_usage_event(event))


class BodyTap:
    """Watches a JSON body for its usage: near the end, unless token ids or log probabilities of the prompt follow."""

    died_of: str | None = None
    """A body that breaks off breaks HTTP."""

    def __init__(self) -> None:
        self._tail = b""
        self.usage: Usage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The chunk as it is."""
        seen = self._tail + chunk
        if b'"usage"' in seen:
            self.usage = find_usage(seen) or self.usage
        self._tail = seen[-_MAX_TAIL_BYTES:]
        return chunk

    def finish(self) -> bytes:
        """Nothing is held back."""
        return b""


_EMPTY_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def _is_usage_event(event: bytes) -> bool:
    """The event that `include_usage` adds: usage, and no choice."""
    return _USAGE.search(event) is not None and _EMPTY_CHOICES.search(event) is not None
