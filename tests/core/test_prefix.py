"""Chunks: equal prefixes share their leading hashes, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.prefix import (
    DEFAULT_CHUNK_BYTES,
    chunk_hashes,
    owned_depth,
    prefix_seed,
    short_prompt_key,
    tenant_salt,
)

SEED = prefix_seed("pool")
CHUNK = 16


def common(one: bytes, other: bytes) -> int:
    """Full chunks that two prompts share from their start."""
    chunks = zip(
        (one[i : i + CHUNK] for i in range(0, len(one) - CHUNK + 1, CHUNK)),
        (other[i : i + CHUNK] for i in range(0, len(other) - CHUNK + 1, CHUNK)),
        strict=False,
    )
    depth = 0
    for a, b in chunks:
        if a != b:
            break
        depth += 1
    return depth


@pytest.mark.parametrize(
    ("size", "chunks"), [(0, 0), (1, 0), (2047, 0), (2048, 1), (2049, 1), (4095, 1), (4096, 2), (65536, 32)]
)
def test_only_full_chunks_are_hashed(size: int, chunks: int) -> None:
    assert DEFAULT_CHUNK_BYTES == 2048
    assert len(chunk_hashes(b"x" * size, SEED)) == chunks


@given(prefix=st.binary(max_size=200), one=st.binary(max_size=100), other=st.binary(max_size=100))
def test_prompts_share_exactly_the_hashes_of_their_common_chunks(
    prefix: bytes, one: bytes, other: bytes
) -> None:
    first, second = prefix + one, prefix + other
    a, b = chunk_hashes(first, SEED, CHUNK), chunk_hashes(second, SEED, CHUNK)
    depth = common(first, second)
    assert depth >= len(prefix) // CHUNK
    assert a[:depth] == b[:depth]
    # A chain never meets again: equal later chunks after a difference hash differently.
    assert not set(a[depth:]) & set(b[depth:])


@given(prompt=st.binary(max_size=300), tail=st.binary(max_size=CHUNK - 1))
def test_a_partial_chunk_changes_nothing(prompt: bytes, tail: bytes) -> None:
    whole = prompt[: len(prompt) // CHUNK * CHUNK]
    assert chunk_hashes(whole + tail, SEED, CHUNK) == chunk_hashes(whole, SEED, CHUNK)


@given(prompt=st.binary(max_size=300), cut=st.integers(0, 20))
def test_the_chain_continues_from_any_of_its_hashes(prompt: bytes, cut: int) -> None:
    hashes = chunk_hashes(prompt, SEED, CHUNK)
    cut = min(cut, len(hashes))
    seed = hashes[cut - 1] if cut else SEED
    assert chunk_hashes(prompt[cut * CHUNK :], seed, CHUNK) == hashes[cut:]


def test_equal_chunks_in_one_prompt_have_different_hashes() -> None:
    hashes = chunk_hashes(b"same" * 4 * 50, SEED, CHUNK)
    assert len(set(hashes)) == len(hashes) == 50


def test_hashes_are_the_same_in_every_release() -> None:
    # Golden: routers of two releases share one Redis.
    assert prefix_seed("pool", "lora", "tenant", "secret") == 0x84EF149767ABEB26
    assert [hex(h) for h in chunk_hashes(bytes(range(48)), 7, CHUNK)] == [
        "0xee0b9003ece2cff1",
        "0x40fcb85c71295aff",
        "0xc87c69697590b040",
    ]


PARTS = st.text("ab\x00é", max_size=3)


@given(one=st.tuples(PARTS, PARTS, PARTS, PARTS), other=st.tuples(PARTS, PARTS, PARTS, PARTS))
def test_seeds_separate_pools_adapters_tenants_and_secrets(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    # Only a difference in any part, even one that moves a letter to the next part, gives another chain.
    assert (prefix_seed(*one) == prefix_seed(*other)) == (one == other)
    shared = set(chunk_hashes(b"p" * 64, prefix_seed(*one), CHUNK)) & set(
        chunk_hashes(b"p" * 64, prefix_seed(*other), CHUNK)
    )
    assert bool(shared) == (one == other)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_short_prompts_meet_only_if_equal(one: bytes, other: bytes) -> None:
    assert (short_prompt_key(one, SEED) == short_prompt_key(other, SEED)) == (one == other)


@given(total=st.integers(0, 40), owned=st.integers(0, 40))
def test_owned_depth_finds_the_owned_run_in_few_questions(total: int, owned: int) -> None:
    hashes = list(range(100, 100 + total))
    asked: list[int] = []

    def owns(chunk: int) -> bool:
        asked.append(chunk)
        return chunk < 100 + owned

    assert owned_depth(hashes, owns) == min(owned, total)
    assert len(asked) <= max(total, 1).bit_length()


_SALTED = st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))


@given(one=_SALTED, other=_SALTED)
def test_salts_are_equal_only_for_one_tenant_its_own_salt_and_secret(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (tenant_salt(*one) == tenant_salt(*other)) == (one == other)


def test_no_salt_of_its_own_makes_a_tenant_another() -> None:
    victim = tenant_salt("acme")
    assert tenant_salt("ac", "me") != victim
    assert tenant_salt("eve", victim) != victim
    # As vLLM takes it: 128 characters at most, and none of @ / \\ NUL.
    assert len(victim) == 64
    assert set(victim) <= set("0123456789abcdef")
