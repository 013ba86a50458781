"""A prompt as placement sees it: the hashes of its chunks, its key on the rings, its length."""

import msgspec

from dualmap.prefix import chunk_hashes, prefix_seed, short_prompt_key
from dualmap.prefix_key import key_depth
from dualmap.types import ChoiceRequest
from dualmap_router.media import MEDIA_BYTES, MEDIA_TOKENS
from dualmap_router.request import InferenceRequest
from dualmap_router.settings import RouterSettings
from dualmap_wire.redis_functions import pack_hashes


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What a decision needs of a prompt."""

    model: str | None
    """The name that the request gives: not every instance may serve it."""
    hashes: list[int]
    packed: bytes
    """The same as Redis and the wire have them."""
    ring_key: int | None
    """Set where the key does not come from the chunks: a short prompt, or a key that the client names."""
    num_bytes: int
    num_tokens: int
    chunk_bytes: int
    chunk_tokens: float
    """Tokens per chunk of this prompt."""
    is_text: bool
    """Text alone: its bytes say how many tokens it has, and its tokens how many bytes one takes."""

    def key(self, splits: frozenset[int]) -> tuple[int, int]:
        """(ring key, chunks in the prefix key)."""
        if self.ring_key is not None:
            return self.ring_key, 0
        depth = key_depth(self.hashes, splits)
        return self.hashes[depth - 1], depth

    def choice_request(self, slo_s: float) -> ChoiceRequest:
        """The prompt as `choose` takes it."""
        return ChoiceRequest(self.num_tokens, self.chunk_tokens, slo_s)


def hash_prompt(
    settings: RouterSettings,
    inference: InferenceRequest,
    adapter: str,
    prefix_key: str | None,
    bytes_per_token: float,
) -> Prompt:
    """Hash a request's prompt under a seed of the pool, the adapter and the salt of the engine's cache."""
    canonical, chunk_bytes = inference.prompt, settings.chunk_bytes
    seed = prefix_seed(settings.pool, adapter, inference.cache_salt, settings.hash_secret)
    hashes = chunk_hashes(canonical[: settings.max_chunks * chunk_bytes], seed, chunk_bytes)
    ring_key = None
    if prefix_key is not None:
        ring_key = short_prompt_key(prefix_key.encode(), seed)
    elif not hashes:
        ring_key = short_prompt_key(canonical, seed)
    num_bytes, num_tokens = len(canonical), inference.prompt_tokens
    if num_tokens is None:
        num_tokens = round((num_bytes - inference.num_media * MEDIA_BYTES) / bytes_per_token)
        num_tokens = max(1, num_tokens + inference.num_media * MEDIA_TOKENS)
    chunk_tokens = chunk_bytes * num_tokens / max(num_bytes, 1)
    is_text = inference.prompt_tokens is None and not inference.num_media
    return Prompt(
        model=inference.model,
        hashes=hashes,
        packed=pack_hashes(hashes),
        ring_key=ring_key,
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        chunk_bytes=chunk_bytes,
        chunk_tokens=chunk_tokens,
        is_text=is_text,
    )
