"""Continuing a stream: whatever was seen and whatever comes, the client reads one answer."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.continuation import (
    SoFar,
    Splice,
    can_continue,
    conclusion,
    continued,
    is_complete,
    prompt_of,
    read_so_far,
)
from dualmap_router.stream_record import StreamRecords

CHAT = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": True}


def sse(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(reply: str, text: str | None, *, chat: bool, finish: str | None = None, **delta: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if chat:
        choice["delta"] = {**({} if text is None else {"content": text}), **delta}
    else:
        choice["text"] = text
    return sse({"id": reply, "created": 7 if reply == "first" else 9, "model": "m", "choices": [choice]})


def stream(reply: str, texts: list[str], prompt_tokens: int, *, chat: bool, finish: str) -> list[bytes]:
    """An engine's stream, one token per text, with usage."""
    opening = [chunk(reply, "", chat=True, role="assistant")] if chat else []
    body = [chunk(reply, text, chat=chat) for text in texts[:-1]]
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)}
    usage["total_tokens"] = prompt_tokens + len(texts)
    ending = [
        chunk(reply, texts[-1], chat=chat, finish=finish),
        sse({"id": reply, "created": 9, "model": "m", "choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]
    return opening + body + ending


def read(data: bytes) -> tuple[str, set[tuple[str, int]], list[str], dict[str, int]]:
    """(text, (id, created) of all chunks, finish reasons, usage) as a client reads them."""
    text, heads, finishes, usage = "", set(), [], {}
    events = [event[6:] for event in data.split(b"\n\n") if event]
    assert events[-1] == b"[DONE]"
    for event in events[:-1]:
        found = json.loads(event)
        heads.add((found["id"], found["created"]))
        for choice in found["choices"]:
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        usage = found.get("usage") or usage
    return text, heads, finishes, usage


@given(
    st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=12),
    st.data(),
    st.booleans(),
)
def test_both_parts_read_as_one(texts: list[str], data: st.DataObject, chat: bool) -> None:
    seen = data.draw(st.integers(1, len(texts) - 1))
    first = stream("first", texts, 10, chat=chat, finish="stop")[: seen + chat]
    so_far = read_so_far(b"".join(first))
    assert so_far == SoFar("first", 7, "".join(texts[:seen]), False)
    splice = Splice(so_far, seen)
    rest = b"".join(stream("second", texts[seen:], 10 + seen, chat=chat, finish="stop"))
    # However the bytes come.
    cut = data.draw(st.integers(0, len(rest)))
    sent = b"".join(first) + splice.rewrite(rest[:cut]) + splice.rewrite(rest[cut:])
    text, heads, finishes, usage = read(sent)
    assert (text, heads, finishes) == ("".join(texts), {("first", 7)}, ["stop"])
    assert usage == {"prompt_tokens": 10, "completion_tokens": len(texts), "total_tokens": 10 + len(texts)}
    # And the whole may break off again.
    again = read_so_far(b"".join(first) + splice.rewrite(rest[: rest.index(b"\n\n") + 2]))
    assert again is not None
    assert "".join(texts).startswith(again.text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data: {",
        b"data: {}\n\n",
        b"data: lorem\n\n",
        chunk("first", "a", chat=True) + b"data: {",
        chunk("first", "a", chat=True) + b"data: [DONE]\n\n",
        chunk("first", None, chat=True, tool_calls=[{"index": 0}]),
        chunk("first", None, chat=True, reasoning_content="hm"),
        chunk("first", None, chat=True, reasoning="hm"),
        sse({"id": "first", "created": 7, "choices": [{"index": 1, "delta": {"content": "a"}}]}),
        sse({"error": {"message": "engine died"}}),
    ],
)
def test_what_cannot_be_continued(data: bytes) -> None:
    assert read_so_far(data) is None


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (chunk("first", "a", chat=True) + b"data: [DONE]\n\n", True),
        (chunk("first", None, chat=True, tool_calls=[{"index": 0}]) + b"data: [DONE]\r\n\r\n", True),
        (chunk("first", "a", chat=True), False),
        (chunk("first", "data: [DONE]\n\n", chat=True), False),
        (chunk("first", "a", chat=True) + b"data: [DONE]\n", False),
        (b"", False),
    ],
)
def test_an_answer_is_complete_with_its_end_mark(data: bytes, complete: bool) -> None:
    assert is_complete(data) == complete


def test_a_finished_answer_is_known_as_such() -> None:
    so_far = read_so_far(chunk("first", "a", chat=True) + chunk("first", "", chat=True, finish="length"))
    assert so_far is not None
    assert so_far.is_finished


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2}, {"best_of": 2}, {"response_format": {"type": "json_object"}}, {"echo": True},
        {"structured_outputs": {"json": {}}}, {"guided_json": {"type": "object"}}, {"suffix": "x"},
    ],
)  # fmt: skip
def test_requests_whose_answers_cannot_be_continued(field: dict[str, Any]) -> None:
    assert can_continue(CHAT)
    assert can_continue({**CHAT, "n": 1, "response_format": {"type": "text"}, "tools": [{}]})
    assert not can_continue({**CHAT, **field})


def test_character_offsets_cannot_be_continued_but_a_chats_logprobs_can() -> None:
    assert not can_continue({"prompt": "a", "logprobs": 1})
    assert can_continue({**CHAT, "logprobs": True})


def test_a_chat_gets_the_text_as_its_open_last_message() -> None:
    rest = continued({**CHAT, "max_tokens": 10, "min_tokens": 5}, "so far", [1, 2, 3])
    assert rest is not None
    assert rest["messages"] == [*CHAT["messages"], {"role": "assistant", "content": "so far"}]
    assert (rest["add_generation_prompt"], rest["continue_final_message"]) == (False, True)
    assert (rest["max_tokens"], rest["min_tokens"]) == (7, 2)
    # One that was a continuation already goes on in the same message.
    again = continued(rest, " and on", [4])
    assert again is not None
    assert again["messages"][-1] == {"role": "assistant", "content": "so far and on"}


def test_a_chat_of_which_nothing_was_seen_starts_anew() -> None:
    assert continued(CHAT, "", []) == CHAT


def test_a_completion_gets_token_ids_behind_its_prompts() -> None:
    body = {"model": "m", "prompt": "ab", "max_tokens": 4}
    assert continued(body, "x", [7], [1, 2]) == {"model": "m", "prompt": [1, 2, 7], "max_tokens": 3}


def test_no_rest_within_the_limit() -> None:
    assert continued({**CHAT, "max_completion_tokens": 2}, "ab", [1, 2]) is None


@pytest.mark.parametrize(
    ("prompt", "one"),
    [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), (["a", "b"], None), ([[1], [2]], None)],
)
def test_the_one_prompt(prompt: Any, one: Any) -> None:
    assert prompt_of({"prompt": prompt}) == one


def test_an_engines_error_passes_as_it_is() -> None:
    splice = Splice(SoFar("first", 7, "a", False), 1)
    event = sse({"error": {"message": "no"}})
    assert msgspec.json.decode(splice.rewrite(event)[6:]) == {"error": {"message": "no"}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["id", "choices", "delta", "role", "usage", "prompt_tokens", "x"]), inner
            )
        ),
    )
)
def test_whatever_an_engine_says_is_rewritten_or_passed(value: Any) -> None:
    read_so_far(sse(value))
    Splice(SoFar("first", 7, "a", False), 1).rewrite(sse(value) + b"data: lorem\n\n")


def test_records_are_bounded_each_and_together() -> None:
    records = StreamRecords(10, 15)
    first, second, third = records.open(), records.open(), records.open()
    first.add(b"12345")
    first.add(b"67890")
    assert first.read() == b"1234567890"
    second.add(b"12345")
    third.add(b"1")  # one too many for all: this stream is given up, the others stay
    assert (third.read(), second.read()) == (None, b"12345")
    second.add(b"678901")
    assert second.read() is None
    assert records.held_bytes == 10
    for record in (first, second, third):
        record.close()
    assert records.held_bytes == 0


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("usage", [None, (5, 3)])
@pytest.mark.parametrize("seen", ["text", "finish", "usage"])
def test_an_answer_of_which_only_the_end_is_missing(
    chat: bool, usage: tuple[int, int] | None, seen: str
) -> None:
    kind = "chat.completion.chunk" if chat else "text_completion"
    head = {"id": "first", "created": 7, "object": kind, "model": "m"}
    choice: dict[str, Any] = {"index": 0, "finish_reason": None if seen == "text" else "stop"}
    choice |= {"delta": {"content": "all of it"}} if chat else {"text": "all of it"}
    data = sse({**head, "choices": [choice]})
    counts = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    if seen == "usage":
        data += sse({**head, "choices": [], "usage": counts})
    so_far = read_so_far(data)
    assert so_far is not None
    found = [part.removeprefix(b"data: ") for part in conclusion(so_far, usage).split(b"\n\n") if part]
    assert found.pop() == b"[DONE]"
    chunks = [json.loads(part) for part in found]
    assert all({name: one[name] for name in head} == head for one in chunks)
    finishes = [choice["finish_reason"] for one in chunks for choice in one["choices"]]
    assert finishes == (["length"] if seen == "text" else [])
    assert not any(choice.get("text") or choice.get("delta") for one in chunks for choice in one["choices"])
    usages = [one["usage"] for one in chunks if one.get("usage")]
    assert usages == ([counts] if usage is not None and seen != "usage" else [])


def test_embeddings_are_no_prompt_that_goes_on() -> None:
    assert prompt_of({"prompt_embeds": "AAAA"}) is None


def test_an_event_nested_too_deeply_is_passed_on() -> None:
    event = b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert read_so_far(b"data: " + event + b"\n\n") is None
    splice = Splice(SoFar("first", 7, "a", False), 1)
    assert splice.rewrite(b"data: " + event + b"\n\n") == b"data: " + event + b"\n\n"


def test_a_completion_that_brings_messages_does_not_go_on_as_a_chat() -> None:
    assert not can_continue({"prompt": "a", "messages": [{"role": "user", "content": "b"}], "stream": True})
