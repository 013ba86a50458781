"""Engines' streams through the worker's tap and the router's continuation: any cut gives the same, garbage no text."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.continuation import SoFar, Splice, read_so_far
from dualmap_worker.usage import BodyTap, StreamTap, find_usage

from .strategies import INTS, TEXTS, cuts, damaged, json_texts, json_values

FIELDS = st.sampled_from(
    ["id", "created", "choices", "delta", "role", "content", "text", "index", "finish_reason", "usage",
     "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens", "prompt_token_ids", "error",
     "code", "message", "tool_calls", "object"]
)  # fmt: skip
CHOICES = st.fixed_dictionaries(
    {"index": st.sampled_from([0, 0, 0, 1]) | INTS},
    optional={
        "delta": st.fixed_dictionaries({}, optional={"role": TEXTS, "content": st.none() | TEXTS}),
        "text": TEXTS,
        "finish_reason": st.sampled_from([None, "stop"]),
    },
)
CHUNKS = st.fixed_dictionaries(
    {"id": TEXTS, "created": st.integers(0, 2**40), "choices": st.lists(CHOICES, max_size=2)},
    optional={"usage": json_values(FIELDS), "prompt_token_ids": st.lists(INTS, max_size=3)},
)
ERRORS = st.fixed_dictionaries(
    {"error": st.fixed_dictionaries({"message": TEXTS, "code": st.sampled_from([400, 500, 503])})}
)
ENDS = st.sampled_from([b"\n\n", b"\n\n", b"\r\n\r\n"])
EVENTS = st.builds(
    lambda opening, payload, end: opening + payload.replace(b"\n", b" ") + end,
    st.sampled_from([b"data: ", b"data: ", b"data:", b"event: x\ndata: ", b": "]),
    json_texts(CHUNKS | ERRORS | json_values(FIELDS)) | st.just(b"[DONE]"),
    ENDS,
)
WHOLE = st.lists(EVENTS, max_size=6).map(b"".join)
STREAMS = WHOLE | WHOLE.flatmap(
    lambda stream: damaged(stream, (b"\n", b"\r\n\r\n", b"data:", b'"usage":{', b"\0"))
)


def events(data: bytes) -> list[bytes]:
    """A stream's events, without the blank lines between them."""
    return [event for event in data.replace(b"\r\n", b"\n").split(b"\n\n") if event.strip()]


def tapped(tap: StreamTap, chunks: list[bytes]) -> tuple[bytes, str | None]:
    """What a worker relays of these chunks, and what it stops at."""
    passed = b""
    for chunk in chunks:
        passed += tap.feed(chunk)
        if tap.died_of is not None:
            return passed, tap.died_of
    return passed + tap.finish(), None


@given(STREAMS, st.booleans(), st.sampled_from(["/v1/chat/completions", "/v1/responses?x"]), st.data())
def test_the_tap_relays_the_same_however_bytes_come(
    stream: bytes, hide: bool, path: str, data: st.DataObject
) -> None:
    whole, died = tapped(StreamTap(hide, path), [stream])
    parts, died_in_parts = tapped(StreamTap(hide, path), data.draw(cuts(stream)))
    assert (events(parts), died_in_parts) == (events(whole), died)
    # Only whole events may be missing, and only those that tell of usage or come behind a death.
    assert set(events(whole)) <= set(events(stream))
    if not hide and died is None:
        assert whole == stream


@given(json_texts(json_values(FIELDS)), st.data())
def test_a_body_passes_whatever_it_is(body: bytes, data: st.DataObject) -> None:
    find_usage(body)
    tap = BodyTap()
    assert b"".join(map(tap.feed, data.draw(cuts(body)))) + tap.finish() == body


@given(STREAMS, st.integers(0, 5), st.data())
def test_the_rest_of_a_stream_is_the_same_however_it_comes(
    stream: bytes, num_tokens: int, data: st.DataObject
) -> None:
    so_far = SoFar("first", 7, "seen", False)
    whole = Splice(so_far, num_tokens).rewrite(stream)
    splice = Splice(so_far, num_tokens)
    assert b"".join(map(splice.rewrite, data.draw(cuts(stream)))) == whole
    for event in events(whole):
        assert event.startswith(b"data: ")


def text_of(stream: bytes) -> str:
    """The text of a stream as any client of OpenAI's puts it together."""
    texts = []
    for event in events(stream):
        for line in event.split(b"\n"):
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                for choice in json.loads(line[5:]).get("choices", ()):
                    texts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
    return "".join(texts)


@given(STREAMS)
def test_what_was_seen_is_read_as_clients_read_it_or_not_at_all(stream: bytes) -> None:
    so_far = read_so_far(stream)
    if so_far is not None:
        assert so_far.text == text_of(stream)
