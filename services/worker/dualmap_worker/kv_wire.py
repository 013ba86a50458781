"""vLLM's KV cache events, read: which blocks an engine stored and removed.

A message is [topic, 8-byte big-endian sequence number, msgpack batch], a batch [timestamp, events, rank]. An event
is a map with its "type"; older releases wrote an array [type, fields...] instead. Fields and events that
this module does not name are passed over, so that a later vLLM can add some.
Source: vllm/distributed/kv_events.py of vLLM 0.32.
"""

from typing import Any

import msgspec

from dualmap_worker.errors import KvEventError

SESSION_HEADER = "x-session-id"
"""A request's header whose value its `BlockStored` events repeat."""

BlockHash = int | bytes
"""Of a block and all before it; vLLM's default is a number, its SHA-256 option bytes."""


class KvEvent(msgspec.Struct, frozen=True, gc=False):
    """`BlockStored`, `BlockRemoved`, `AllBlocksCleared`, or something newer."""

    type: str
    block_hashes: tuple[BlockHash, ...] = ()
    parent_block_hash: BlockHash | None = None
    block_size: int = 0
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None
    """Of the request that stored the blocks, as its `X-Session-ID` header named it."""


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[KvEvent]


class _ArrayBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[list[Any]]


_decode = msgspec.msgpack.Decoder(_Batch).decode
_decode_arrays = msgspec.msgpack.Decoder(_ArrayBatch).decode


def decode_batch(payload: bytes) -> list[KvEvent]:
    """The events of one batch, in order; KvEventError for what is none."""
    try:
        return _decode(payload).events
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return [_from_array(fields) for fields in _decode_arrays(payload).events]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as exc:
        raise KvEventError(f"not a batch of KV events: {payload[:60]!r}") from exc


def _from_array(fields: list[Any]) -> KvEvent:
    match fields:
        case ["BlockStored", hashes, parent, _, size, *rest]:
            event = {"block_hashes": hashes, "parent_block_hash": parent, "block_size": size}
            medium = rest[1] if len(rest) > 1 else None
            return msgspec.convert({"type": "BlockStored", "medium": medium, **event}, KvEvent)
        case ["BlockRemoved", hashes, *rest]:
            medium = rest[0] if rest else None
            return msgspec.convert(
                {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium}, KvEvent
            )
    return KvEvent(type=str(fields[0]))
