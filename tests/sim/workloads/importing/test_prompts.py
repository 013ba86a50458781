import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.workloads.importing.prompts import (
    MEDIA_BYTES,
    LoggedMessage,
    block_ids,
    chat_bytes,
    prompt_bytes,
)
from dualmap_sim.workloads.importing.salted import Salted

SALTED = Salted("salt")


def messages(*contents: object) -> list[LoggedMessage]:
    raw = msgspec.json.encode([{"role": "user", "content": content} for content in contents])
    return msgspec.json.decode(raw, type=list[LoggedMessage])


def test_a_later_turn_extends_the_prompt() -> None:
    first = chat_bytes([msgspec.Raw(b"[]")], messages("hello"))
    later = chat_bytes([msgspec.Raw(b"[]")], messages("hello", "and"))
    assert later.startswith(first)
    assert first == b'[]\x1euser\x1f"hello"'


def test_a_picture_is_a_thousand_tokens_and_hashes_by_its_content() -> None:
    def picture(data: str) -> bytes:
        part = {"type": "image_url", "image_url": {"url": data * 100_000}}
        return chat_bytes([], messages([{"type": "text", "text": "what is it"}, part]))

    assert MEDIA_BYTES < len(picture("a")) < MEDIA_BYTES + 200
    assert picture("a") == picture("a") != picture("b")


@given(st.binary(max_size=6000), st.integers(1, 4000), st.binary(max_size=3000))
def test_there_is_an_id_per_block_and_equal_prefixes_share(head: bytes, tokens: int, tail: bytes) -> None:
    ids = block_ids(head, tokens, 2048, 0, SALTED)
    assert len(ids) == -(-tokens // 512)
    assert all(0 <= one < 2**53 for one in ids)
    longer = block_ids(head + tail, tokens, 2048, 0, SALTED)
    shared = min(len(head) // 2048, len(ids))
    assert longer[:shared] == ids[:shared]
    if tail and len(head) < 2048:
        assert longer[0] != ids[0]


def test_another_salt_or_seed_shares_nothing() -> None:
    ids = block_ids(b"x" * 9000, 2250, 2048, 0, SALTED)
    assert ids == block_ids(b"x" * 9000, 2250, 2048, 0, Salted("salt"))
    assert not {*ids} & {*block_ids(b"x" * 9000, 2250, 2048, 0, Salted("other"))}
    assert not {*ids} & {*block_ids(b"x" * 9000, 2250, 2048, 1, SALTED)}
    assert SALTED.name("alice") == Salted("salt").name("alice") != Salted("other").name("alice")


def test_completions_are_text_or_token_ids() -> None:
    assert prompt_bytes("hé") == ("hé".encode(), None)
    assert prompt_bytes(["a", "b"]) == (b"a\x1eb", None)
    assert prompt_bytes([1, 2]) == (b"\x01\0\0\0\x02\0\0\0", 2)
