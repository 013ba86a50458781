"""Keeps a request from being more urgent than its key may have it. Smaller is more urgent.

Priorities are above tenants' turns in our queues, and in vLLM's with `--scheduling-policy priority`. Whatever
either might go by is held to the key: both headers as often as they come, and the body's `priority` as often as it
is in there, since of a name that comes twice one reader keeps the first and another the last. Nothing is changed:
the engine gets what has been checked.
"""

import json
import re
import secrets
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from dualmap_router.errors import ApiError, bad_request
from dualmap_router.http_message import HttpRequest

PRIORITY_HEADERS = ("x-dualmap-priority", "x-vllm-priority")

# The name as JSON may have it, each letter escaped or not: within a JSON text a quote ends and begins strings only.
_NAMED = re.compile(
    rb'"' + b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in b"priority") + rb'"\s*:'
)


# The same in encodings of two or four bytes a letter, escapes as well.
_NAMED_WIDE = re.compile(rb"p\0+r\0+i\0+o\0+r\0+i\0+t\0+y|\\\0+u")
_BEFORE_JSON = b"\0 \t\r\n\xef\xbb\xbf\xfe\xff"

_MOST_NAMED = 128
"""Places of a body that may name a priority, in tools' schemas for instance."""
_LOOSE_BYTES = 64 * 1024
"""What is read as Python's own reader does, which makes objects of all of it and lets nobody else run meanwhile."""
_MOST_DIGITS = 64
_OWN = secrets.token_hex(8)
"""In no body but by chance: nobody else knows it."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all of its names, also those that come twice."""


def check_urgency(request: HttpRequest) -> None:
    """ApiError 403 for what asks for more than its key may, 400 for what might and cannot be read."""
    most_urgent = request.caller.most_urgent
    if most_urgent is None:
        return
    for name, text in request.headers:
        if name in PRIORITY_HEADERS and _number(text) < most_urgent:
            raise _too_urgent(name, most_urgent)
    for value in _in_body(request.body):
        if value is not None and not isinstance(value, (int, float)):
            raise bad_request("priority must be an integer", "priority")
        if value is not None and value < most_urgent:
            raise _too_urgent("priority", most_urgent)


def _in_body(body: bytes) -> Iterator[Any]:
    """Each `priority` of a JSON body, or of the requests that it lists."""
    # NUL: a body that is not UTF-8, which engines' readers take as well.
    wide = b"\0" in body
    if not wide and (not (b'priority"' in body or b"\\u" in body) or not _NAMED.search(body)):
        return
    if len(body) <= _LOOSE_BYTES:
        yield from _read_loosely(body)
    elif not wide:
        yield from _read_strictly(body)
    elif body[:256].lstrip(_BEFORE_JSON)[:1] in (b"", b"{", b"[") and _NAMED_WIDE.search(body):
        raise bad_request("a large body that names a priority has to be UTF-8")


def _read_strictly(body: bytes) -> list[Any]:
    """A large body's, without objects of the rest: each place that names one gets a name of its own first, so that
    none hides another."""
    places = iter(range(_MOST_NAMED + 1))
    renamed, num = _NAMED.subn(lambda _: f'"{_own_name(next(places))}":'.encode(), body, _MOST_NAMED + 1)
    if num > _MOST_NAMED:
        raise bad_request(f"a large body may name a priority {_MOST_NAMED} times", "priority")
    try:
        found = msgspec.json.decode(renamed, type=_places(num))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise bad_request("a large body that names a priority has to be one JSON object") from exc
    return [_small(value) for value in msgspec.structs.astuple(found)]


def _own_name(place: int) -> str:
    return f"{_OWN}-{place}"


@lru_cache(_MOST_NAMED)
def _places(num: int) -> type[msgspec.Struct]:
    """What is read of a body with so many places."""
    names = {f"place_{place}": _own_name(place) for place in range(num)}
    fields = [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in names]
    return msgspec.defstruct("Places", fields, rename=names)


def _small(value: msgspec.Raw) -> Any:
    if len(bytes(value)) > _MOST_DIGITS:
        raise bad_request("priority must be an integer", "priority")
    return msgspec.json.decode(value)


def _read_loosely(body: bytes) -> Iterator[Any]:
    try:
        read = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as exc:
        if _NAMED.search(body):
            raise bad_request("the body names a priority and cannot be read as JSON") from exc
        return
    asked = read if isinstance(read, list) and not isinstance(read, _Pairs) else [read]
    for one in asked:
        if isinstance(one, _Pairs):
            yield from (value for name, value in one if name == "priority")


def _number(text: str) -> float:
    """What any reader might make of a header; readers overlook what is no number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return 0


def _too_urgent(where: str, most_urgent: int) -> ApiError:
    message = (
        f"{where} asks for more than this key may: {most_urgent} is its most urgent, smaller is more urgent"
    )
    return ApiError(403, message, "permission_error", "insufficient_permissions", param=where)
