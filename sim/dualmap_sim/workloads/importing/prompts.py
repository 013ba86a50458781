"""The canonical prompt of a logged request, and the block ids that stand for it.

The join is the router's (`dualmap_router.request`): tools, then each message's role and content in order, as the
client's JSON has them. Two requests share a prefix exactly when their leading bytes agree.
"""

from array import array
from collections.abc import Sequence

import msgspec
import xxhash

from dualmap.prefix import chunk_hashes
from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.importing.salted import Salted
from dualmap_sim.workloads.trace_line import num_blocks

MEDIA_BYTES = 4000
"""What an image or a sound fills of a prompt, about a thousand tokens; as base64 it would be a book."""
_TEXT_TYPES = frozenset(("text", "input_text", "output_text", "tool_use", "tool_result", "thinking"))

Raw = msgspec.Raw


class LoggedMessage(msgspec.Struct):
    """A message as the log has it."""

    role: str = ""
    content: Raw = Raw(b"null")
    tool_calls: Raw = Raw(b"")


class _Part(msgspec.Struct):
    type: str = "text"


_items = msgspec.json.Decoder(list[Raw])
_part = msgspec.json.Decoder(_Part)


def chat_bytes(preamble: Sequence[Raw], messages: Sequence[LoggedMessage]) -> bytes:
    """The canonical prompt of a conversation; `preamble` is tools, instructions and the like."""
    parts: list[bytes] = [bytes(raw) for raw in preamble if len(raw)]
    for message in messages:
        content = _content(message.content)
        parts += (b"\x1e", message.role.encode(), b"\x1f", content, bytes(message.tool_calls))
    return b"".join(parts)


def _content(content: Raw) -> bytes:
    raw = bytes(content)
    if not raw.startswith(b"["):
        return raw
    return b",".join(bytes(item) if _is_text(item) else _stand_in(bytes(item)) for item in _items.decode(raw))


def _is_text(item: Raw) -> bool:
    try:
        return _part.decode(item).type in _TEXT_TYPES
    except msgspec.ValidationError:
        return True


def _stand_in(medium: bytes) -> bytes:
    digest = xxhash.xxh3_128_hexdigest(medium).encode()
    return digest * (MEDIA_BYTES // len(digest))


def prompt_bytes(prompt: str | Sequence[object]) -> tuple[bytes, int | None]:
    """(canonical bytes, tokens if they are known) of a completion's prompt: text, texts or token ids."""
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass"), None
    if all(isinstance(part, str) for part in prompt):
        return "\x1e".join(map(str, prompt)).encode("utf-8", "surrogatepass"), None
    ids = [part for part in prompt if isinstance(part, int)]
    if len(ids) != len(prompt) or not all(0 <= token < 2**32 for token in ids):
        raise LineError("prompt must be a text or a list of token ids")
    return array("I", ids).tobytes(), len(ids)


def block_ids(prompt: bytes, tokens: int, chunk_bytes: int, seed: int, salted: Salted) -> list[int]:
    """One id per block of 512 of the prompt's `tokens`.

    Chunks are a fixed number of bytes: a boundary that followed each prompt's own bytes per token would cut equal
    prefixes differently. So a prompt may have some chunks more than blocks, which are left out, or fewer: the
    rest of the blocks then get ids of this prompt's own.
    """
    blocks = num_blocks(tokens)
    chunks = chunk_hashes(prompt[: blocks * chunk_bytes], seed, chunk_bytes)
    ids = [salted.block(chunk.to_bytes(8, "big")) for chunk in chunks[:blocks]]
    if len(ids) < blocks:
        whole = xxhash.xxh3_128_digest(prompt, seed)
        ids += [
            salted.block(whole + bytes((0,)) + index.to_bytes(4, "big")) for index in range(len(ids), blocks)
        ]
    return ids
