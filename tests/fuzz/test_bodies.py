"""Bodies, headers and files that people write: a value or an error that names what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.api_keys import Keyring, KeysError, read_entries
from dualmap_router.continuation import can_continue, continued, prompt_of
from dualmap_router.errors import ApiError
from dualmap_router.request import model_of, parse_inference, parse_options
from dualmap_sim.workloads.errors import LineError, TraceError
from dualmap_sim.workloads.importing.convert import FORMATS, ImportOptions, import_trace
from dualmap_sim.workloads.importing.stamps import epoch_ms
from dualmap_sim.workloads.mooncake import read_mooncake
from dualmap_sim.workloads.trace_line import parse_trace_line

from .strategies import INTS, SCALARS, TEXTS, json_texts, json_values

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "prompt_embeds", "input", "stream", "stream_options", "cache_salt", "priority",
     "tools", "system", "instructions", "role", "content", "type", "image_url", "text", "n", "max_tokens",
     "min_tokens", "response_format", "logprobs"]
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": TEXTS}, optional={"content": json_values(FIELDS)}), min_size=1, max_size=3
)
PROMPTS = (
    TEXTS
    | st.lists(st.just([]), max_size=3)
    | st.lists(INTS | TEXTS | st.lists(INTS, max_size=3), max_size=3)
)
BODIES = st.builds(
    lambda any_of, known: {**any_of, **known},
    st.dictionaries(FIELDS, json_values(FIELDS), max_size=5),
    st.fixed_dictionaries(
        {},
        optional={
            "messages": MESSAGES,
            "prompt": PROMPTS,
            "prompt_embeds": TEXTS,
            "stream": st.booleans(),
            "max_tokens": INTS,
        },
    ),
)


@given(st.sampled_from(PATHS), json_texts(BODIES))
def test_an_inference_body(path: str, body: bytes) -> None:
    assert model_of(body) is None or isinstance(model_of(body), str)
    try:
        got = parse_inference(path, body)
    except ApiError as error:
        assert error.status == 400
        assert set(json.loads(error.body())["error"]) == {"message", "type", "param", "code"}
        return
    assert isinstance(got.prompt, bytes)
    assert got.prompt_tokens is None or got.prompt_tokens > 0
    assert -(2**31) <= got.priority < 2**31


@given(st.sampled_from(PATHS[:2]), json_texts(BODIES), TEXTS, st.lists(st.integers(0, 9), max_size=3))
def test_a_body_that_was_taken_has_a_rest_or_none(path: str, body: bytes, text: str, ids: list[int]) -> None:
    """Whatever was asked for, its stream may break off: the rest is a request as well, or there is none."""
    try:
        parse_inference(path, body)
    except ApiError:
        return
    asked: dict[str, Any] = json.loads(body)
    if not can_continue(asked):
        return
    prompt = () if "messages" in asked else prompt_of(asked)
    if prompt is not None:
        rest = continued(asked, text, ids, () if isinstance(prompt, str) else prompt)
        assert rest is None or rest["messages" if "messages" in asked else "prompt"] is not None


NUMBERS = SCALARS.map(str) | st.sampled_from(
    ["nan", "-inf", "1e999", "9" * 5000, "１２", "0x10", " 5 ", "1_000"]
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["x-dualmap-slo-ttft-ms", "x-dualmap-priority", "x-dualmap-policy", "x-dualmap-prefix-key",
             "x-dualmap-resume", "x-vllm-priority"]
        ),
        NUMBERS,
    )
)  # fmt: skip
def test_headers_together(headers: dict[str, str]) -> None:
    try:
        got = parse_options(headers.get)
    except ApiError as error:
        assert error.status == 400
        assert error.param in headers
        json.loads(error.body())
        return
    assert got.slo_s is None or 0 < got.slo_s < 1e6
    assert got.priority is None or -(2**31) <= got.priority < 2**31


KEY_FIELDS = st.sampled_from(
    ["keys", "name", "sha256", "tenant", "requests_per_s", "burst", "concurrency", "admin", "expires"]
)
ENTRIES = st.fixed_dictionaries(
    {
        "name": TEXTS,
        "sha256": st.sampled_from(["a" * 64, "b" * 64, "A" * 64]),
        "tenant": st.sampled_from("ab") | TEXTS,
    },
    optional={
        "requests_per_s": INTS | st.floats(),
        "burst": INTS,
        "concurrency": INTS,
        "admin": st.booleans(),
        "expires": st.sampled_from(
            ["2027-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", ""]
        ),
    },
)


@given(json_texts(st.fixed_dictionaries({"keys": st.lists(ENTRIES, max_size=3)}) | json_values(KEY_FIELDS)))
def test_a_keys_file(text: bytes) -> None:
    try:
        entries = read_entries(text)
    except KeysError as error:
        assert str(error)
        return
    assert len(Keyring(entries)) == len(entries)


TRACE_FIELDS = st.sampled_from(
    ["timestamp", "input_length", "output_length", "hash_ids", "tenant", "session", "adapter", "slo_s"]
)
LINES = st.fixed_dictionaries(
    {
        "timestamp": INTS | st.floats(),
        "input_length": st.integers(1, 1500),
        "output_length": INTS,
        "hash_ids": st.lists(INTS, max_size=3),
    }
)


@given(json_texts(LINES | json_values(TRACE_FIELDS)))
def test_a_line_of_a_trace(raw: bytes) -> None:
    try:
        line = parse_trace_line(raw)
    except LineError as error:
        assert str(error)
        return
    assert line.timestamp >= 0


LOG_FIELDS = st.sampled_from(
    ["timestamp", "created", "request", "body", "response", "messages", "prompt", "input", "role", "content", "usage",
     "prompt_tokens", "completion_tokens", "model", "user", "session", "metadata", "slo_s", "cache_salt", "max_tokens"]
)  # fmt: skip
LOGGED = st.fixed_dictionaries(
    {"timestamp": INTS | st.floats() | TEXTS},
    optional={"prompt": PROMPTS, "messages": MESSAGES, "request": BODIES},
)
ROWS = st.lists(SCALARS.map(str), max_size=5).map(
    lambda cells: ",".join(cells).encode("utf-8", "surrogatepass")
)
HEADER = b"Timestamp,Session ID,Request tokens,Response tokens"


@pytest.mark.parametrize("kind", FORMATS)
@given(
    lines=st.lists(
        json_texts(LINES | LOGGED | json_values(TRACE_FIELDS | LOG_FIELDS)) | ROWS | st.just(HEADER),
        max_size=4,
    ),
    skip=st.booleans(),
)
def test_a_log_of_any_format(kind: str, lines: list[bytes], skip: bool, tmp_path: Path) -> None:
    source, out = tmp_path / "log", tmp_path / "trace.jsonl"
    if kind == "burstgpt":
        lines = [HEADER, b"5,s,700,10", *lines]
    source.write_bytes(b"\n".join(line.replace(b"\n", b" ") for line in lines))
    try:
        report = import_trace(source, out, ImportOptions("salt", format=kind, skip_bad=skip))
    except TraceError as error:
        assert str(source) in str(error)
        return
    # What was imported is a trace.
    requests = read_mooncake(out)
    assert len(requests) == report.requests > 0
    assert all(request.at_s >= 0 for request in requests)


@given(SCALARS | NUMBERS | st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"]))
def test_a_stamp(stamp: object) -> None:
    try:
        assert isinstance(epoch_ms(stamp), float)
    except LineError as error:
        assert str(error)
