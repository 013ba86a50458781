"""Follows one answer's server-sent events by their bytes.

The load generator shares its machine with what it measures, so it decodes JSON only up to the first content
and once at the end; in between it counts lines. That is exact: an event's JSON holds no raw newline, and a
quote inside a JSON string is escaped, so none of the searched-for bytes can come from an answer's text.
"""

from typing import Any

import msgspec

from dualmap_cli.load.gaps import add_gap

# Rare marks: a read that holds one of them is parsed line by line.
_FINISH = (b'"finish_reason":"', b'"finish_reason": "')
_NO_CHOICES = (b'"choices":[]', b'"choices": []')


class AnswerStream:
    """What is known of a streamed answer so far; `gap_scale` turns real seconds into the gaps' seconds."""

    __slots__ = (
        "_error_event",
        "_finishes",
        "_gap_scale",
        "_kept",
        "_last_payload",
        "_tail",
        "dones",
        "error",
        "events",
        "first_at",
        "gaps",
        "last_at",
        "late_content",
        "max_gap_s",
    )

    def __init__(self, *, gap_scale: float = 1.0, keep: bool = False) -> None:
        self._tail = b""
        self._last_payload = b""
        self._kept: list[bytes] | None = [] if keep else None
        self._gap_scale = gap_scale
        self._finishes = 0
        self._error_event = False
        self.events = 0
        self.dones = 0
        self.late_content = False
        self.error: str | None = None
        self.first_at: float | None = None
        self.last_at = 0.0
        self.gaps: dict[int, int] = {}
        self.max_gap_s = 0.0

    @property
    def answered_twice(self) -> bool:
        """More than one end, or content after the end."""
        return self.dones > 1 or self._finishes > 1 or self.late_content

    @property
    def usage(self) -> dict[str, Any]:
        """The usage of the last event, empty when it has none."""
        found = _decode(self._last_payload).get("usage")
        return found if isinstance(found, dict) else {}

    def feed(self, data: bytes, now: float) -> None:
        """Take what one read brought at `now` (real seconds on any clock)."""
        if self._tail:
            data = self._tail + data
        cut = data.rfind(b"\n") + 1
        self._tail = data[cut:]
        if not cut:
            return
        if self._tail:
            data = data[:cut]
        if self._kept is not None:
            self._kept.append(data)
        finishes = data.count(_FINISH[0]) + data.count(_FINISH[1])
        self._finishes += finishes
        if (
            self.first_at is None
            or finishes
            or self.dones
            or b"[DONE]" in data
            or b'"error"' in data
            or _NO_CHOICES[0] in data
            or _NO_CHOICES[1] in data
        ):
            contents = sum([self._take_line(line.strip()) for line in data.split(b"\n")])
        else:
            contents = data.count(b"\ndata:") + data.startswith(b"data:")
            if contents:
                start = 0 if contents == 1 and data.startswith(b"data:") else data.rfind(b"\ndata:") + 1
                self._last_payload = data[start + 5 : data.find(b"\n", start)]
        if contents:
            self._count(contents, now)

    def text(self) -> str:
        """The answer's text; only for a stream that keeps its bytes."""
        lines = b"".join(self._kept or []).split(b"\n")
        return "".join(choice_text(_decode(line[5:])) for line in lines if line.startswith(b"data:"))

    def _count(self, contents: int, now: float) -> None:
        if self.first_at is None:
            self.first_at = now
        else:
            # Several events in one read were sent apart and coalesced on the way: share the gap out.
            gap_s = (now - self.last_at) * self._gap_scale
            add_gap(self.gaps, gap_s / contents, contents)
            self.max_gap_s = max(self.max_gap_s, gap_s)
        self.events += contents
        self.last_at = now

    def _take_line(self, line: bytes) -> bool:
        """Take one line; True for an event that carries content."""
        if line.startswith(b"event:"):
            self._error_event = line[6:].strip() == b"error"
        if not line.startswith(b"data:"):
            return False
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self.dones += 1
            return False
        if self._error_event or payload.startswith(b'{"error"'):
            self.error = error_message(payload)
            self._error_event = False
            return False
        self._last_payload = payload
        if _NO_CHOICES[0] in payload or _NO_CHOICES[1] in payload:
            return False
        # The role's event before the first content and the closing one after the last carry nothing.
        may_be_bare = self.first_at is None or _FINISH[0] in payload or _FINISH[1] in payload
        if may_be_bare and not has_content(_decode(payload)):
            return False
        self.late_content = self.late_content or self.dones > 0
        return True


def has_content(event: dict[str, Any]) -> bool:
    """Whether an event or a whole answer brings anything the model wrote."""
    for choice in event.get("choices") or ():
        part = choice.get("delta") or choice.get("message") or {}
        keys = ("content", "reasoning_content", "reasoning", "tool_calls")
        if choice.get("text") or any(part.get(key) for key in keys):
            return True
    return False


def choice_text(event: dict[str, Any]) -> str:
    """The text that an event or a whole answer brings."""
    choices = event.get("choices") or ()
    parts = (choice.get("delta") or choice.get("message") or choice for choice in choices)
    return "".join(part.get("content") or part.get("text") or "" for part in parts)


def error_message(body: bytes) -> str:
    """The message of an OpenAI-shaped error, else the body's beginning."""
    error = _decode(body).get("error")
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])[:300]
    return error[:300] if isinstance(error, str) else body[:300].decode(errors="replace")


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
