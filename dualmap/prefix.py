"""Chunks: the canonical prompt cut into equal byte runs, each hash standing for the whole prefix up to it.

A chunk hash is a *hint* for placement. Engines compare tokens, not these hashes, so a collision costs a
bad placement and never a wrong answer; 64 bits are plenty.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import xxhash

DEFAULT_CHUNK_BYTES = 2048
"""About 512 tokens of English text: the block of the paper."""


@lru_cache(maxsize=4096)
def prefix_seed(pool: str, adapter: str = "", salt: str = "", secret: str = "") -> int:
    """The start of a hash chain: prompts under different seeds never share a chunk hash.

    `salt` is the one that the engine's cache is told, a tenant's or the request's own; `secret` keeps outsiders
    from aiming prompts at an instance.
    """
    return int.from_bytes(_keyed(secret, 8, pool, adapter, salt), "big")


@lru_cache(maxsize=4096)
def tenant_salt(tenant: str, own: str = "", secret: str = "") -> str:
    """The engine's `cache_salt` of a tenant: no other's, whatever salt of its `own` a request brings.

    64 hexadecimal digits: engines take 128 characters at most, and not all of them.
    """
    return _keyed(secret, 32, "tenant", tenant, own).hex()


def _keyed(secret: str, size: int, *parts: str) -> bytes:
    # Lengths, not separators: a salt may hold any character, also a separator.
    raw = (part.encode() for part in parts)
    data = b"".join(len(part).to_bytes(4, "big") + part for part in raw)
    return hashlib.blake2b(data, key=secret.encode()[:64], digest_size=size).digest()


def chunk_hashes(prompt: bytes, seed: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> list[int]:
    """Chained hashes of the full chunks of a prompt; a last partial chunk is not hashed."""
    digest = xxhash.xxh3_64_intdigest
    view = memoryview(prompt)
    hashes: list[int] = []
    for start in range(0, len(prompt) - chunk_bytes + 1, chunk_bytes):
        seed = digest(view[start : start + chunk_bytes], seed)
        hashes.append(seed)
    return hashes


def short_prompt_key(prompt: bytes, seed: int) -> int:
    """The ring key of a prompt without one full chunk: nothing is worth sharing, equal prompts still meet."""
    return xxhash.xxh3_64_intdigest(prompt, seed)


def owned_depth(hashes: Sequence[int], owns: Callable[[int], bool]) -> int:
    """How many leading chunks are owned, by binary search: whoever owns a chunk owns those before it."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if owns(hashes[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return low
