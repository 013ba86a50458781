"""Images and the like in a prompt: by content, at a fixed price, without disturbing what is around them."""

import base64
import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.media import MEDIA_BYTES, MEDIA_TOKENS, without_media
from dualmap_router.prompt import Prompt, hash_prompt
from dualmap_router.request import InferenceRequest, parse_inference
from dualmap_router.settings import RouterSettings

CHAT = "/v1/chat/completions"


def data(seed: int, num_bytes: int = 750_000) -> str:
    return base64.b64encode(random.Random(seed).randbytes(num_bytes)).decode()


def image(seed: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data(seed)}"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def parse(path: str, **body: Any) -> InferenceRequest:
    return parse_inference(path, json.dumps(body).encode())


def prompt_of(*turns: dict[str, Any]) -> Prompt:
    return hash_prompt(RouterSettings(), parse(CHAT, messages=list(turns)), "", None, 4.0)


def test_an_image_counts_as_so_many_tokens_whatever_its_size() -> None:
    words = prompt_of(user(text("what is this? " * 20)))
    seen = prompt_of(user(text("what is this? " * 20), image(1), image(2)))
    # Two commas and two spaces between the parts.
    assert seen.num_tokens == pytest.approx(words.num_tokens + 2 * MEDIA_TOKENS, abs=2)
    assert seen.num_bytes == pytest.approx(words.num_bytes + 2 * MEDIA_BYTES, abs=80)
    assert seen.chunk_tokens == pytest.approx(words.chunk_tokens, rel=0.05)
    assert (words.is_text, seen.is_text) == (True, False)


def test_a_conversation_about_an_image_shares_its_chunks() -> None:
    opening = user(image(1), text("what is this?"))
    one = prompt_of(opening)
    two = prompt_of(opening, {"role": "assistant", "content": "a picture"}, user(text("of what?")))
    other = prompt_of(user(image(2), text("what is this?")))
    assert len(one.hashes) >= 1
    assert two.hashes[: len(one.hashes)] == one.hashes
    assert one.key(frozenset()) == two.key(frozenset()) != other.key(frozenset())


B64 = data(3, 30_000)


@pytest.mark.parametrize(
    "part",
    [
        image(3),
        {"image_url": {"url": f"data:image/png;base64,{B64}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{B64}"}},
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{B64}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{B64}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": B64}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{B64}"}},
    ],
    ids=lambda part: str(part)[:40],
)
@pytest.mark.parametrize(
    ("path", "field"), [(CHAT, "messages"), ("/v1/messages", "messages"), ("/v1/responses", "input")]
)
def test_every_kind_of_medium(path: str, field: str, part: dict[str, Any]) -> None:
    got = parse(path, **{field: [user(text("one"), part, text("two"))]})
    assert got.num_media == 1
    assert MEDIA_BYTES < len(got.prompt) < MEDIA_BYTES + 200
    assert B64.encode()[:200] not in got.prompt
    # A tool may answer with one, too.
    result = {"type": "tool_result", "tool_use_id": "1", "content": [text("seen"), part]}
    assert parse(path, **{field: [user(result)]}).num_media == 1


@pytest.mark.parametrize(
    "content",
    [
        "data:image/png;base64," + B64,
        [text("data:image/png;base64," + B64)],
        [text(json.dumps(image(1))[:5000])],
        [{"type": "document", "source": {"type": "text", "data": "words " * 500}}],
        [{"type": "file", "file": {"file_id": "f-1"}}],
        ["a", "b"],
        [1, 2],
        [[1], [2]],
        [],
        None,
    ],
    ids=lambda content: str(content)[:30],
)
def test_what_is_text_stays_as_it_is(content: Any) -> None:
    raw = json.dumps(content).encode()
    got = parse_inference(CHAT, b'{"messages":[{"role":"user","content":' + raw + b"}]}")
    assert (got.num_media, got.prompt) == (0, b"\x1euser\x1f" + raw)


def test_deep_nesting_is_not_searched() -> None:
    deep: Any = [image(1)]
    for _ in range(5):
        deep = [{"content": deep}]
    assert without_media(msgspec.Raw(json.dumps(deep).encode()))[1] == 0


PARTS = st.sampled_from(
    [text("a"), text('b \u00e9 "'), image(1), image(2), {"type": "image_url", "image_url": "x"}]
)


@given(st.lists(PARTS, max_size=6), st.sampled_from([None, 1]))
def test_only_the_media_change(parts: list[dict[str, Any]], indent: int | None) -> None:
    raw = json.dumps(parts, indent=indent)
    got, num_media = without_media(msgspec.Raw(raw.encode()))
    expected = raw
    media = [json.dumps(part) for part in parts if "image_url" in part]
    assert num_media == len(media)
    if indent is None:
        for medium in set(media):
            stand_in = bytes(without_media(msgspec.Raw(f"[{medium}]".encode()))[0])[1:-1].decode()
            assert len(stand_in) == MEDIA_BYTES
            expected = expected.replace(medium, stand_in)
        assert bytes(got).decode() == expected
