"""Usage found in bytes that pass by, however they are cut, and taken out again where it was not asked for."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_worker.usage import BodyTap, StreamTap, Usage, ask_usage, find_usage

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}
FOUND = Usage(prompt_tokens=7, cached_tokens=4, output_tokens=3)


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None})


DONE = b"data: [DONE]\n\n"
LAST = event({"choices": [], "usage": USAGE})
TEXTS = st.lists(
    st.text(max_size=30) | st.sampled_from(['"usage"', '"usage": {"prompt_tokens": 1}', "\n\n", "data: "])
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(set(at)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.integers(1, len(data) - 1), max_size=30).map(lambda at: cut(data, at))


def passed(tap: StreamTap, chunks: list[bytes]) -> bytes:
    return b"".join([tap.feed(chunk) for chunk in chunks]) + tap.finish()


@given(TEXTS, st.booleans(), st.sampled_from([DONE, b"", b"data: [DONE]"]), st.data())
def test_what_passes_is_the_stream_without_its_usage_event(
    texts: list[str], crlf: bool, end: bytes, data: st.DataObject
) -> None:
    deltas, last = b"".join(delta(text) for text in texts), LAST
    if crlf:
        deltas, last, end = (part.replace(b"\n", b"\r\n") for part in (deltas, last, end))
    tap = StreamTap(hide_usage=True)
    assert passed(tap, data.draw(cuts(deltas + last + end))) == deltas + end
    assert tap.usage == FOUND


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 3}, FOUND),
        (
            {
                "input_tokens": 2,
                "cache_read_input_tokens": 4,
                "cache_creation_input_tokens": 1,
                "output_tokens": 3,
            },
            FOUND,
        ),
        ({"input_tokens": 7, "output_tokens": 3}, Usage(7, None, 3)),
        ({"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 3}, Usage(7, None, 3)),
    ],
)
def test_anthropics_input_tokens_leave_out_the_cached(usage: dict[str, int], found: Usage) -> None:
    assert find_usage(event({"type": "message_delta", "usage": usage})) == found


def test_a_usage_event_that_ends_the_stream_unfinished() -> None:
    tap = StreamTap(hide_usage=True)
    assert passed(tap, [delta("a"), LAST.strip()]) == delta("a")
    assert tap.usage == FOUND


@given(TEXTS, st.data())
def test_a_stream_that_hides_nothing_passes_whole(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(delta(text) for text in texts) + LAST + DONE
    tap = StreamTap(hide_usage=False)
    assert passed(tap, data.draw(cuts(stream))) == stream
    assert tap.usage == FOUND


@given(st.binary(max_size=300), st.booleans(), st.data())
def test_any_bytes_pass(stream: bytes, hide: bool, data: st.DataObject) -> None:
    if len(stream) > 1:
        assert passed(StreamTap(hide), data.draw(cuts(stream))) == stream


@pytest.mark.parametrize("line", [b"\n", b"\r\n"])
def test_nothing_is_kept_back_between_events(line: bytes) -> None:
    tap = StreamTap(hide_usage=True)
    for text in ("a", "b", "c"):
        chunk = delta(text).replace(b"\n", line)
        assert tap.feed(chunk) == chunk
    assert tap.feed(LAST) == b""
    assert tap.feed(DONE) == DONE
    assert tap.finish() == b""


def typed(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


OPENING = [
    typed("response.created", response={"instructions": 'say "type": "response.output_text.delta"'}),
    typed("response.in_progress", response={}),
    typed("response.output_item.added"),
]


@pytest.mark.parametrize("kind", ["response.output_text.delta", "response.function_call_arguments.delta"])
def test_what_opens_a_response_waits_for_the_first_delta(kind: str) -> None:
    tap = StreamTap(hide_usage=False, path="/v1/responses?x=1")
    assert [tap.feed(part) for part in OPENING] == [b""] * 3
    assert tap.feed(typed(kind, delta="a")) == b"".join(OPENING) + typed(kind, delta="a")
    done = typed("response.completed", response={"usage": USAGE})
    assert tap.feed(done) == done
    assert (tap.finish(), tap.usage) == (b"", FOUND)


def test_a_response_without_a_delta_comes_whole_at_its_end() -> None:
    stream = [*OPENING, typed("response.completed", response={"usage": USAGE})]
    tap = StreamTap(hide_usage=False, path="/v1/responses")
    assert passed(tap, stream) == b"".join(stream)
    assert tap.usage == FOUND


def test_comments_alone_do_not_begin_a_stream() -> None:
    tap = StreamTap(hide_usage=True)
    assert tap.feed(b": ping\n\n") == b""
    assert tap.feed(delta("a")) == b": ping\n\n" + delta("a")
    assert tap.feed(b": ping\n\n") == b": ping\n\n"


def test_an_opening_is_bounded() -> None:
    tap = StreamTap(hide_usage=False, path="/v1/responses")
    sent = b"".join(tap.feed(typed("response.created", x="x" * 300_000)) for _ in range(10))
    assert len(sent) >= 3_000_000


def test_usage_beside_choices_stays() -> None:
    """Some engines put usage into the last chunk with a choice: the client would have seen it anyway."""
    chunk = event({"choices": [{"index": 0, "delta": {}}], "usage": USAGE})
    tap = StreamTap(hide_usage=True)
    assert tap.feed(chunk) == chunk
    assert tap.usage == FOUND


def test_an_event_without_end_is_bounded() -> None:
    tap = StreamTap(hide_usage=True)
    sent = b"".join(tap.feed(b"x" * 300_000) for _ in range(10))
    assert len(sent) >= 3_000_000 - (1 << 20)
    assert len(sent + tap.finish()) == 3_000_000


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b"", None),
        (b'{"usage": null}', None),
        (b'{"usage": {"prompt_tokens": "many"}}', None),
        (b'{"usage": {"prompt_tokens": 7', None),
        (b'{"usage": {}}', Usage(0, None, 0)),
        (b'{"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}', Usage(5, None, 4)),
        (b'{"usage": {"input_tokens": 5, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}}',
         Usage(5, 2, 4)),
        (b'{"usage":{"prompt_tokens":1}} {"usage" : {"prompt_tokens":2}}', Usage(2, None, 0)),
        (json.dumps({"text": 'say "usage": {"prompt_tokens": 9}', "usage": USAGE}).encode(), FOUND),
        (b'{"usage": {"prompt_tokens": 3, "x": "\xff"}}', Usage(3, None, 0)),
    ],
)  # fmt: skip
def test_find_usage(data: bytes, usage: Usage | None) -> None:
    assert find_usage(data) == usage


@given(st.text(max_size=6000), st.integers(0, 5000), st.data())
def test_a_body_passes_whole_and_its_usage_is_found(text: str, behind: int, data: st.DataObject) -> None:
    # vLLM puts the prompt's token ids behind a chat's usage.
    whole = {"choices": [{"text": text}], "usage": USAGE, "prompt_token_ids": [7] * behind}
    body = json.dumps(whole).encode()
    tap = BodyTap()
    chunks = data.draw(cuts(body))
    assert b"".join(tap.feed(chunk) for chunk in chunks) + tap.finish() == body
    assert tap.usage == FOUND


@given(
    st.dictionaries(st.text(min_size=1), st.integers() | st.text(), min_size=1),
    st.sampled_from(["", " ", "\n\t"]),
)
def test_asking_for_usage_changes_nothing_else(body: dict[str, Any], after: str) -> None:
    body.pop("stream_options", None)
    body["stream"] = True
    asked = json.loads(ask_usage((json.dumps(body) + after).encode()))
    assert asked == {**body, "stream_options": {"include_usage": True}}


DEATH = event(
    {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}
)


def test_an_engine_that_says_it_died_ends_the_stream_before_that() -> None:
    tap = StreamTap(hide_usage=False)
    assert tap.feed(delta("a") + DEATH + DONE) == delta("a")
    assert tap.died_of is not None
    assert "EngineCore" in tap.died_of


@pytest.mark.parametrize(
    "said",
    [
        event({"error": {"message": "bad", "type": "BadRequestError", "code": 400}}),
        delta('data: {"error": {"code": 500}}'),
        delta('{"error"'),
    ],
)
def test_other_errors_pass(said: bytes) -> None:
    tap = StreamTap(hide_usage=False)
    assert tap.feed(said) == said
    assert tap.died_of is None
