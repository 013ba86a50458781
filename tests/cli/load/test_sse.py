import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_cli.load.sse import AnswerStream, choice_text, error_message

USAGE = {"prompt_tokens": 9, "completion_tokens": 3}


def delta(content: str | None = None, finish: str | None = None, **more: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}]}


def event(payload: object, spaced: bool = False) -> bytes:
    separators = None if spaced else (",", ":")
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=separators)
    return f"data: {text}\n\n".encode()


def answer(texts: list[str], spaced: bool = False) -> bytes:
    events = [delta("", role="assistant"), *map(delta, texts), delta("", "stop")]
    return b"".join(event(one, spaced) for one in [*events, {"choices": [], "usage": USAGE}, "[DONE]"])


@given(
    texts=st.lists(st.text(min_size=1), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    spaced=st.booleans(),
    crlf=st.booleans(),
)
def test_any_cut_of_the_bytes_gives_the_same_answer(
    texts: list[str], cuts: list[int], spaced: bool, crlf: bool
) -> None:
    raw = answer(texts, spaced)
    if crlf:
        raw = raw.replace(b"\n", b"\r\n")
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    stream = AnswerStream(keep=True)
    for now, (start, end) in enumerate(pairwise(places)):
        stream.feed(raw[start:end], float(now))
    assert stream.text() == "".join(texts)
    assert stream.events == len(texts)
    assert stream.dones == 1
    assert stream.usage == USAGE
    assert not stream.answered_twice
    assert stream.error is None
    assert sum(stream.gaps.values()) <= len(texts) - 1


def test_times_are_those_of_content() -> None:
    stream = AnswerStream(gap_scale=10)
    stream.feed(event(delta("", role="assistant")), 1.0)
    assert stream.first_at is None
    stream.feed(event(delta("a")), 2.0)
    stream.feed(event(delta("b")) + event(delta("c")), 4.0)
    stream.feed(event({"choices": [], "usage": USAGE}) + event("[DONE]"), 9.0)
    assert (stream.first_at, stream.last_at, stream.events) == (2.0, 4.0, 3)
    assert stream.max_gap_s == 20
    # Two gaps of ten model seconds each: log2(10) * 16 = 53.
    assert stream.gaps == {53: 2}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "tool_calls"])
def test_reasoning_and_tool_calls_are_content(key: str) -> None:
    stream = AnswerStream()
    stream.feed(event(delta(**{key: "x"})), 2.0)
    assert stream.first_at == 2.0


def test_completions_have_text() -> None:
    stream = AnswerStream(keep=True)
    stream.feed(event({"choices": [{"text": "ab"}]}) + event({"choices": [{"text": "c"}]}), 2.0)
    assert (stream.text(), stream.events) == ("abc", 2)


@pytest.mark.parametrize(
    "more",
    [
        event("[DONE]"),
        event(delta("again")),
        event(delta("x", "stop")),
        answer(["whole"]),
    ],
)
def test_anything_after_the_end_is_a_second_answer(more: bytes) -> None:
    stream = AnswerStream()
    stream.feed(answer(["a"]), 1.0)
    assert not stream.answered_twice
    stream.feed(more, 2.0)
    assert stream.answered_twice


@pytest.mark.parametrize("prefix", [b"", b"event: error\n"])
def test_an_error_event_is_an_error(prefix: bytes) -> None:
    stream = AnswerStream()
    stream.feed(event(delta("a")), 1.0)
    stream.feed(prefix + event({"error": {"message": "engine died"}}) + event("[DONE]"), 2.0)
    assert stream.error == "engine died"
    assert stream.events == 1


def test_text_cannot_pass_for_marks() -> None:
    stream = AnswerStream(keep=True)
    text = '\ndata: [DONE]\n\n"finish_reason":"stop" {"error": "no"} "choices":[]'
    stream.feed(answer([text, text]), 1.0)
    assert (stream.dones, stream.events, stream.error) == (1, 2, None)
    assert not stream.answered_twice
    assert stream.text() == text * 2


def test_odd_bodies_do_not_raise() -> None:
    stream = AnswerStream(keep=True)
    stream.feed(b": comment\n\nid: 7\ndata: not json\n\ndata: [1]\n\n", 1.0)
    assert (stream.first_at, stream.usage, stream.text()) == (None, {}, "")
    assert error_message(b"\xff<html>") == "\ufffd<html>"
    assert error_message(b'{"error": "short"}') == "short"
    assert choice_text({}) == ""
