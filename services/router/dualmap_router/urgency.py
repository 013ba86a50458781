"""Keeps a request from being more urgent than its key may have it. Smaller is more urgent.

Priorities are above tenants' turns in our queues, and in vLLM's with `--scheduling-policy priority`. Whatever
either might go by is held to the key: both headers as often as they come, and the body's `priority` as often as it
is in there, since of a name that comes twice one reader keeps the first and another the last. Nothing is changed:
the engine gets what has been checked.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from dualmap_router.errors import ApiError, bad_request
from dualmap_router.http_message import HttpRequest

PRIORITY_HEADERS = ("x-dualmap-priority", "x-vllm-priority")

# The name as JSON may have it, each letter escaped or not: within a JSON text a quote ends and begins strings only.
_NAMED = re.compile(
    rb'"' + b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in b"priority") + rb'"\s*:'
)


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
    if b"\0" not in body and (not (b'priority"' in body or b"\\u" in body) or not _NAMED.search(body)):
        return
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
