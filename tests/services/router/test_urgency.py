"""How urgent a request may be, by whatever its queue or its engine might read of it."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.caller import ANYONE, Caller
from dualmap_router.errors import ApiError
from dualmap_router.http_message import HttpRequest
from dualmap_router.urgency import PRIORITY_HEADERS, check_urgency

MAY = Caller("key", "acme", most_urgent=-2)


def check(body: bytes = b"{}", *headers: tuple[str, str], caller: Caller = MAY) -> int:
    """The status that is answered; 200 where nothing is."""
    asked = HttpRequest("POST", b"/v1/completions", headers, body, caller=caller)
    try:
        check_urgency(asked)
    except ApiError as error:
        kinds = {403: "permission_error", 400: "invalid_request_error"}
        assert error.kind == kinds[error.status]
        return error.status
    assert (asked.body, asked.headers) == (body, headers)
    return 200


@pytest.mark.parametrize("header", PRIORITY_HEADERS)
@pytest.mark.parametrize(
    ("text", "status"),
    [("5", 200), ("0", 200), ("-2", 200), ("-3", 403), (str(-(2**80)), 403), ("-9.5", 403), ("-inf", 403),
     ("nan", 200), ("soon", 200), ("", 200), ("-" + "9" * 5000, 403)],
)  # fmt: skip
def test_a_header(header: str, text: str, status: int) -> None:
    assert check(b"{}", (header, text)) == status


@pytest.mark.parametrize(
    "headers",
    [
        (("x-dualmap-priority", "0"), ("x-vllm-priority", "-3")),
        (("x-vllm-priority", "0"), ("x-vllm-priority", "-3")),
        (("x-vllm-priority", "-3"), ("x-vllm-priority", "0")),
        (("x-dualmap-priority", "0"), ("x-dualmap-priority", "-3")),
    ],
)
def test_no_header_hides_another(headers: tuple[tuple[str, str], ...]) -> None:
    assert check(b"{}", *headers) == 403


BODIES: list[tuple[bytes, int]] = [
    (b'{"priority": -2}', 200),
    (b'{"priority": null}', 200),
    (b'{"priority": 2.5}', 200),
    (b'{"priority": -3}', 403),
    (b'{"priority": -3.0}', 403),
    (b'{"priority": -3e0}', 403),
    (b'{"priority": -Infinity}', 403),
    (b'{"priority": %d}' % -(2**70), 403),
    (b'{"priority":\n\t-3}', 403),
    (b'{"priority" \n: -3}', 403),
    (b'{"pri\\u006Frity": -3}', 403),
    (b'{"\\u0070riorit\\u0079": -3}', 403),
    # Of a name that comes twice either may win.
    (b'{"priority": -3, "priority": 0}', 403),
    (b'{"priority": 0, "priority": -3}', 403),
    (b'{"priority": 0, "prior\\u0069ty": -3}', 403),
    # What an engine might still take for a number.
    (b'{"priority": "-3"}', 400),
    (b'{"priority": [-3]}', 400),
    (b'{"priority": {"priority": -3}}', 400),
    # JSON to some readers only.
    (b'{"priority": -3, "x": NaN}', 403),
    ('{"priority": -3}'.encode("utf-16"), 403),
    ('{"priority": -3}'.encode("utf-16-be"), 403),
    ('{"priority": -3}'.encode("utf-32-le"), 403),
    ('\ufeff{"priority": -3}'.encode(), 403),
    (b'{"priority": -3', 400),
    (b'{"priority": -3} \xff', 400),
    (b'{"priority": -3, "x": ' + b"[" * 200_000, 400),
    # A list of requests.
    (b'[{"priority": 0}, {"priority": -3}]', 403),
    (b'[{"priority": 0}, 5, [{"priority": -3}]]', 200),
    # Not this priority.
    (b'{"tools": [{"properties": {"priority": {"type": "integer"}}}], "metadata": {"priority": -3}}', 200),
    (b'{"prompt": "{\\"priority\\": -3}"}', 200),
    (b'{"Priority": -3, "priority ": -3, "a priority": -3}', 200),
    (b'"priority"', 200),
    (b"priority: -3", 200),
    (b"", 200),
    (b"\0\xff audio", 200),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=[body[:40].decode("latin-1") for body, _ in BODIES])
def test_a_body(body: bytes, status: int) -> None:
    assert check(body) == status


LARGE = b" " * 70_000
"""In a body: what reads all of it at leisure is only for smaller ones."""
_ONE_OBJECT = [
    (body, status)
    for body, status in BODIES
    if body[:1] == b"{" and not any(odd in body for odd in (b"NaN", b"Inf", b"\0"))
]


@pytest.mark.parametrize(
    ("body", "status"), _ONE_OBJECT, ids=[body[:40].decode("latin-1") for body, _ in _ONE_OBJECT]
)
def test_a_large_body(body: bytes, status: int) -> None:
    assert check(b"{" + LARGE + body[1:]) == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"priority": -3, "x": NaN}', 400),
        (b'[{"priority": 0}]', 400),
        (b'{"priority": -%s}' % (b"9" * 5000), 400),
        (b"{%s}" % b",".join([b'"priority": 0'] * 128), 200),
        (b"{%s}" % b",".join([b'"priority": 0'] * 129), 400),
        (b'{"x": [%s]}' % b",".join([b'{"priority": -9}'] * 100), 200),
        (b'{"x\\"priority": -9, "x": "\\"priority\\": -9"}', 200),
        ('{"priority": -3}'.encode("utf-16"), 400),
        ('{"prior\\u0069ty": -3}'.encode("utf-32-be"), 400),
        ('{"prompt": "x"}'.encode("utf-16"), 200),
        (b'--form\r\n\r\npriority": -3\0', 200),
    ],
)  # fmt: skip
def test_what_only_a_large_body_may_not(body: bytes, status: int) -> None:
    """The priority is never overlooked; what cannot be read quickly is refused."""
    blanks = " " * 70_000
    width = 4 if body[:3] == b"\0\0\0" else 2 if b"\0" in body[:6] else 1
    wide = {4: blanks.encode("utf-32-be"), 2: blanks.encode("utf-16-le"), 1: blanks.encode()}[width]
    assert check(body + wide) == status


def test_a_large_body_makes_no_objects() -> None:
    """A million empty objects beside a priority: they would take the router a third of a second, and its memory."""
    body = b'{"priority": 0, "x": [' + b",".join([b"{}"] * 1_000_000) + b"]}"
    check(body)
    tracemalloc.start()
    assert check(body) == 200
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * len(body)


def test_who_may_ask_for_any_priority() -> None:
    for caller in (ANYONE, Caller("key", "ops", admin=True)):
        assert check(b'{"priority": -9}', ("x-dualmap-priority", "-9"), caller=caller) == 200


_VALUES = st.none() | st.integers(-5, 5) | st.just(-(2**63)) | st.text(max_size=3)
_OBJECTS = st.lists(st.tuples(st.sampled_from(["priority", "prompt", "x"]), _VALUES), max_size=6)


@given(_OBJECTS, st.booleans())
def test_every_reader_gets_what_the_key_may_have(pairs: list[tuple[str, Any]], escaped: bool) -> None:
    """Whichever of a name's values a reader keeps."""
    names = [json.dumps(name).replace("i", "\\u0069") if escaped else json.dumps(name) for name, _ in pairs]
    values = [json.dumps(value) for _, value in pairs]
    fields = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    priorities = [value for name, value in pairs if name == "priority"]
    allowed = all(value is None or (isinstance(value, int) and value >= -2) for value in priorities)
    assert (check(f"{{{fields}}}".encode()) == 200) == allowed
