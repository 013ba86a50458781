"""KV cache events on ZeroMQ, in the wire format of vLLM 0.32 (vllm/distributed/kv_events.py).

PUB socket, three frames: topic, 8-byte big-endian sequence number, msgpack batch. The batch is an array
[ts, events, data_parallel_rank]; an event is a map with its "type" and these fields, in this order:
BlockStored block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name, extra_keys,
group_idx (then kv_cache_spec_kind, kv_cache_spec_sliding_window, locality, ownership, session_id, left out
when null); BlockRemoved block_hashes, medium, group_idx; AllBlocksCleared nothing. Hashes are 64-bit
unsigned numbers, vLLM's default.

ROUTER socket: a request is [identity, empty, first sequence number]; every buffered batch from there on comes
back as [identity, empty, topic, sequence number, batch], and the end as [identity, empty, empty, -1, empty].

Older releases encode events as arrays [type, fields...] and send replayed batches without the topic frame:
`KvDialect.ARRAY`, with the fields up to lora_id, so that a subscriber can be tested against both.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
import zmq

from dualmap_sim.engine.block_cache import BlocksCleared, BlocksRemoved, BlocksStored, CacheEvent
from dualmap_sim.engine.text import token_ids

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_MEDIUM = "GPU"
_REPLAY_TICK_S = 0.01


class KvDialect(StrEnum):
    """Which releases' encoding of events to speak."""

    MAP = "map"
    ARRAY = "array"


class BlockStored(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """Blocks became findable."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """Blocks were evicted."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """The whole cache was reset."""


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one step changed."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


def _wire_event(event: CacheEvent, block_size: int, loras: Sequence[str]) -> object:
    match event:
        case BlocksStored(hashes, parent, tokens, salt, session):
            lora = salt.split("\n", 1)[0]
            lora_name = lora if lora in loras else None
            keys = tuple(part for part in salt.split("\n", 1) if part)
            extra_keys = [keys if index == 0 and parent is None else None for index in range(len(hashes))]
            return BlockStored(
                list(hashes),
                parent,
                token_ids(tokens),
                block_size,
                None if lora_name is None else loras.index(lora_name) + 1,
                _MEDIUM,
                lora_name,
                extra_keys if keys else None,
                0,
                session,
            )
        case BlocksRemoved(hashes):
            return BlockRemoved(list(hashes), _MEDIUM, 0)
        case BlocksCleared():
            return AllBlocksCleared()


def _array_event(event: object) -> list[object]:
    match event:
        case BlockStored():
            stored = [
                event.block_hashes,
                event.parent_block_hash,
                event.token_ids,
                event.block_size,
                event.lora_id,
            ]
            return ["BlockStored", *stored]
        case BlockRemoved():
            return ["BlockRemoved", event.block_hashes]
        case _:
            return ["AllBlocksCleared"]


class KvPublisher(Protocol):
    """Where an engine's cache events go."""

    endpoint: str | None
    replay_endpoint: str | None

    def publish(self, events: Sequence[CacheEvent]) -> None:
        """Send the events of one step as one batch."""

    async def run(self) -> None:
        """Answer replay requests until cancelled."""

    def close(self) -> None:
        """Give the ports back."""


class NullKvPublisher:
    """Publishes nothing, when KV events are off."""

    endpoint: str | None = None
    replay_endpoint: str | None = None

    def publish(self, events: Sequence[CacheEvent]) -> None:
        """Drop the events."""

    async def run(self) -> None:
        """Nothing to answer."""

    def close(self) -> None:
        """Nothing to close."""


class ZmqKvPublisher:
    """Publishes on a host; port 0 takes a free one. `buffer_steps` batches can be replayed."""

    def __init__(
        self,
        block_size: int,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        replay_port: int = 0,
        topic: str = "",
        buffer_steps: int = 10_000,
        dialect: KvDialect = KvDialect.MAP,
        loras: Sequence[str] = (),
    ) -> None:
        self._block_size = block_size
        self._topic = topic.encode()
        self._dialect = dialect
        self._loras = loras
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._next_seq = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._replay = self._context.socket(zmq.ROUTER)
        for socket in (self._pub, self._replay):
            socket.linger = 0
            socket.set_hwm(100_000)
        try:
            self.endpoint: str | None = _bind(self._pub, host, port)
            self.replay_endpoint: str | None = _bind(self._replay, host, replay_port)
        except zmq.ZMQError:
            self.close()
            raise

    def publish(self, events: Sequence[CacheEvent]) -> None:
        """Send the events of one step as one batch; subscribers that are too slow lose it."""
        if not events:
            return
        wire = [_wire_event(event, self._block_size, self._loras) for event in events]
        if self._dialect is KvDialect.ARRAY:
            wire = [_array_event(event) for event in wire]
        payload = self._encoder.encode([time.time(), wire, 0])
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._pub.send_multipart((self._topic, seq.to_bytes(8, "big"), payload))
        self._buffer.append((seq, payload))

    async def run(self) -> None:
        """Answer replay requests until cancelled."""
        while True:
            while self._replay.poll(0):
                self._answer_replay(self._replay.recv_multipart())
            await asyncio.sleep(_REPLAY_TICK_S)

    def _answer_replay(self, frames: list[bytes]) -> None:
        if len(frames) != 3:
            return
        client, _, first = frames
        topic = (self._topic,) if self._dialect is KvDialect.MAP else ()
        wanted = int.from_bytes(first, "big")
        for seq, payload in self._buffer:
            if seq >= wanted:
                self._replay.send_multipart((client, b"", *topic, seq.to_bytes(8, "big"), payload))
        end_topic = (b"",) if self._dialect is KvDialect.MAP else ()
        self._replay.send_multipart((client, b"", *end_topic, END_OF_REPLAY, b""))

    def close(self) -> None:
        """Give the ports back."""
        self._pub.close()
        self._replay.close()
        self._context.term()


def _bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> str:
    socket.bind(f"tcp://{host}:{port or '*'}")
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    if not isinstance(endpoint, bytes):
        raise zmq.ZMQBindError(f"no endpoint after binding port {port}")
    return endpoint.rstrip(b"\0").decode()
