"""What the router reads of a request: tables for the shapes, properties for the rest."""

import json
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.errors import ApiError
from dualmap_router.request import InferenceRequest, model_of, parse_inference, parse_options

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LOOSE = ("/v1/embeddings", "/v1/responses", "/v1/messages")


def parse(path: str, **body: Any) -> InferenceRequest:
    return parse_inference(path, json.dumps(body).encode())


def messages(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


# Fields


@pytest.mark.parametrize(
    ("fields", "stream", "wants", "has"),
    [
        ({}, False, False, False),
        ({"stream": False}, False, False, False),
        ({"stream": None}, False, False, False),
        ({"stream": True}, True, False, False),
        ({"stream": True, "stream_options": None}, True, False, False),
        ({"stream": True, "stream_options": {}}, True, False, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False, True),
        ({"stream": True, "stream_options": {"include_usage": True, "more": 1}}, True, True, True),
    ],
)
def test_streams_and_usage(fields: dict[str, Any], stream: bool, wants: bool, has: bool) -> None:
    for got in (parse(CHAT, messages=messages("a"), **fields), parse(TEXT, prompt="a", **fields)):
        assert (got.stream, got.wants_usage, got.has_stream_options) == (stream, wants, has)


def test_defaults_and_values() -> None:
    got = parse(TEXT, prompt="a")
    assert (got.model, got.cache_salt, got.priority, got.prompt_tokens) == (None, "", 0, None)
    got = parse(TEXT, prompt="a", model="m", cache_salt="t", priority=-5, unknown={"x": [1]})
    assert (got.model, got.cache_salt, got.priority) == ("m", "t", -5)


@pytest.mark.parametrize(("given", "queued"), [(2**40, 2**31 - 1), (-(2**63), -(2**31)), (None, 0), (7, 7)])
def test_an_engine_takes_wider_priorities_than_the_queue(given: int | None, queued: int) -> None:
    assert parse(CHAT, messages=messages("a"), priority=given).priority == queued


def test_embeddings_in_place_of_a_prompt() -> None:
    one, two = (parse(TEXT, prompt_embeds=embeds) for embeds in ("AAAA", ["BBBB"]))
    assert (one.prompt, two.prompt) == (b'"AAAA"', b'["BBBB"]')
    assert parse(TEXT, prompt="a", prompt_embeds="AAAA").prompt == b"a"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "m", "file": "x"}', "m"),
        (b'{"model": null}', None),
        (b'{"model": 5}', None),
        (b"[]", None),
        (b"", None),
        (b"--boundary\r\n", None),
        (b'{"model": "\xff"}', None),
    ],
)
def test_the_model_of_any_body(body: bytes, model: str | None) -> None:
    assert model_of(body) == model


@pytest.mark.parametrize(
    ("prompt", "canonical", "tokens"),
    [
        ("héllo", "héllo".encode(), None),
        (["a"], b"a", None),
        (["a", "b"], b"a\x1eb", None),
        ([1, 2**32 - 1], array("I", [1, 2**32 - 1]).tobytes(), 2),
        ([[1, 2]], array("I", [1, 2]).tobytes(), 2),
        ([[1], [2, 3]], array("I", [1, 2, 3]).tobytes(), 3),
    ],
)
def test_completion_prompts(prompt: Any, canonical: bytes, tokens: int | None) -> None:
    got = parse(TEXT, prompt=prompt)
    assert (got.prompt, got.prompt_tokens) == (canonical, tokens)


@pytest.mark.parametrize("path", LOOSE)
def test_other_bodies_hash_what_is_there(path: str) -> None:
    assert parse(path).prompt == b""
    one, two = parse(path, input="a", model="m"), parse(path, input="b", model="m")
    assert one.prompt != two.prompt
    assert parse(path, input="a", temperature=1).prompt == one.prompt
    assert parse(path, system="s", messages=messages("a")).prompt.startswith(b'"s"')


# The canonical prompt


def chat_prompt(*turns: dict[str, Any], **fields: Any) -> bytes:
    return parse(CHAT, messages=list(turns), **fields).prompt


def test_a_conversation_extends_its_prefix() -> None:
    turns = [*messages("one"), {"role": "assistant", "content": "two"}, *messages("three")]
    prompts = [chat_prompt(*turns[: length + 1]) for length in range(3)]
    assert prompts[1].startswith(prompts[0])
    assert prompts[2].startswith(prompts[1])


def test_what_differs_in_the_prompt() -> None:
    base = {"role": "user", "content": "a"}
    assert chat_prompt(base, temperature=0.5, max_tokens=3) == chat_prompt(base)
    different = [
        chat_prompt(base),
        chat_prompt({"role": "system", "content": "a"}),
        chat_prompt(base, tools=[{"type": "function"}]),
        chat_prompt({**base, "tool_calls": [{"id": "1"}]}),
        chat_prompt({"role": "user", "content": [{"type": "text", "text": "a"}]}),
        chat_prompt({"role": "user", "content": None}),
        chat_prompt({"role": "user"}, {"role": "user", "content": "a"}),
    ]
    assert len(set(different)) == len(different)


TEXTS = st.text(max_size=40)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=6))
def test_equal_beginnings_share_a_prefix(turns: list[tuple[str, str]]) -> None:
    whole = [{"role": role, "content": content} for role, content in turns]
    longest = chat_prompt(*whole)
    for length in range(1, len(whole)):
        assert longest.startswith(chat_prompt(*whole[:length]))


@given(TEXTS, TEXTS)
def test_different_texts_differ(one: str, two: str) -> None:
    if one and two:
        assert (parse(TEXT, prompt=one).prompt == parse(TEXT, prompt=two).prompt) == (one == two)
    assert (chat_prompt(*messages(one)) == chat_prompt(*messages(two))) == (one == two)


# What is refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model",
    "messages",
    "prompt",
    "input",
    "stream",
    "stream_options",
    "cache_salt",
    "priority",
    "tools",
)


@given(st.sampled_from((CHAT, TEXT, *LOOSE)), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_taken_or_refused(path: str, body: dict[str, Any]) -> None:
    try:
        got = parse(path, **body)
    except ApiError as error:
        assert error.status == 400
        assert json.loads(error.body())["error"]["message"]
    else:
        assert isinstance(got.prompt, bytes)
        assert -(2**31) <= got.priority < 2**31


@given(st.sampled_from((CHAT, TEXT, *LOOSE)), st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(path: str, body: bytes) -> None:
    try:
        parse_inference(path, body)
    except ApiError as error:
        assert error.status == 400


@given(st.data())
def test_a_damaged_body_is_taken_or_refused(data: st.DataObject) -> None:
    body = bytearray(json.dumps({"model": "m", "messages": messages("hello", [{"type": "text"}])}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_inference(CHAT, bytes(body))
    except ApiError as error:
        assert error.status == 400


# Headers


def test_no_headers_no_options() -> None:
    got = parse_options({}.get)
    assert (got.slo_s, got.priority, got.prefix_key, got.policy) == (None, None, None, None)


def test_headers_become_options() -> None:
    got = parse_options(
        {
            "x-dualmap-slo-ttft-ms": "1500.5",
            "x-dualmap-priority": "-2",
            "x-dualmap-prefix-key": "k",
            "x-dualmap-policy": "paper",
        }.get
    )
    assert (got.slo_s, got.priority, got.prefix_key, got.policy) == (1.5005, -2, "k", "paper")


@pytest.mark.parametrize(
    ("headers", "priority"),
    [
        ({"x-vllm-priority": "4"}, 4),
        ({"x-vllm-priority": "4", "x-dualmap-priority": "-1"}, -1),
        ({"x-vllm-priority": "soon"}, None),
        ({"x-vllm-priority": str(2**40)}, 2**31 - 1),
    ],
)
def test_vllms_priority_header_counts_unless_ours_says_otherwise(
    headers: dict[str, str], priority: int | None
) -> None:
    assert parse_options(headers.get).priority == priority


@given(
    st.sampled_from(["slo-ttft-ms", "priority", "policy", "prefix-key"]).map("x-dualmap-{}".format),
    st.text(max_size=20) | st.floats().map(str) | st.integers().map(str),
)
def test_any_header_is_taken_or_named(name: str, value: str) -> None:
    try:
        got = parse_options({name: value}.get)
    except ApiError as error:
        assert (error.status, error.param) == (400, name)
        assert name in error.message
    else:
        assert got.slo_s is None or 0 < got.slo_s < 1e6
        assert got.priority is None or -(2**31) <= got.priority < 2**31


def test_lists_of_no_tokens_are_no_prompt() -> None:
    with pytest.raises(ApiError, match="must not be empty"):
        parse(TEXT, prompt=[[], []])
