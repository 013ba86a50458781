"""An audit of ownership: what an engine's own event buffer says is cached, against what Redis says it holds.

It reads events in its own way, whole from the replay socket and by token ids, and shares no code with the worker.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import zmq
import zmq.asyncio
from redis.asyncio import Redis

from dualmap.prefix import chunk_hashes, prefix_seed
from dualmap_wire.redis_keys import PoolKeys

CHUNK_BYTES = 2048


@dataclass
class EngineCache:
    """The blocks that an engine's events, read from the first to the last, leave in its cache."""

    block_size: int = 0
    copies: Counter[Any] = field(default_factory=Counter)
    children: dict[tuple[Any, tuple[int, ...]], Any] = field(default_factory=dict)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Follow one event."""
        if event["type"] == "AllBlocksCleared":
            self.copies.clear()
        elif event["type"] == "BlockRemoved":
            self.copies.subtract(event["block_hashes"])
        else:
            size = self.block_size = event["block_size"]
            parent = event["parent_block_hash"]
            for index, block in enumerate(event["block_hashes"]):
                self.copies[block] += 1
                self.children[parent, tuple(event["token_ids"][index * size : (index + 1) * size])] = block
                parent = block

    def cached_blocks(self, ids: Sequence[int]) -> int:
        """Leading blocks of a prompt that are cached."""
        parent, size = None, self.block_size
        for count in range(len(ids) // size if size else 0):
            block = self.children.get((parent, tuple(ids[count * size : (count + 1) * size])))
            if block is None or self.copies[block] <= 0:
                return count
            parent = block
        return len(ids) // size if size else 0


async def read_cache(replay_url: str) -> EngineCache:
    """Everything that an engine's buffer has."""
    cache = EngineCache()
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(replay_url)
        await socket.send_multipart([b"", (0).to_bytes(8, "big")])
        expected = 0
        while True:
            frames = await socket.recv_multipart()
            sequence = int.from_bytes(frames[-2], "big", signed=True)
            if sequence < 0:
                return cache
            assert sequence == expected, "the buffer does not reach back to the beginning"
            expected += 1
            for event in msgspec.msgpack.decode(frames[-1])[1]:
                cache.apply(event)


async def tokenize(http: aiohttp.ClientSession, engine_url: str, model: str, prompt: str) -> list[int]:
    """A completion prompt's token ids, as its engine says."""
    async with http.post(f"{engine_url}/tokenize", json={"model": model, "prompt": prompt}) as reply:
        ids: list[int] = (await reply.json())["tokens"]
        return ids


@dataclass(frozen=True)
class Audit:
    """Chunks of the prompts asked for: what the cache has for sure, what it may have, what Redis says."""

    surely: frozenset[bytes]
    perhaps: frozenset[bytes]
    owned: frozenset[bytes]

    @property
    def agrees(self) -> bool:
        """Whether Redis says all of what is there, and nothing that is not."""
        return self.surely <= self.owned <= self.perhaps

    def __str__(self) -> str:
        return (
            f"cached {len(self.surely)} to {len(self.perhaps)}, owned {len(self.owned)}, missing "
            f"{len(self.surely - self.owned)}, too many {len(self.owned - self.perhaps)}"
        )


async def audit(
    redis: Redis, pool: str, instance: str, replay_url: str, prompts: Mapping[str, Sequence[int]]
) -> Audit:
    """Compare an instance; `prompts` are all completion prompts that were asked for, with their token ids.

    Chunks end at tokens by proportion, so prompts that share a chunk may differ by a block on where it ends.
    """
    cache = await read_cache(replay_url)
    says: dict[bytes, set[bool]] = {}
    for prompt, ids in prompts.items():
        data = prompt.encode()
        cached = cache.cached_blocks(ids)
        for index, chunk in enumerate(chunk_hashes(data, prefix_seed(pool, "", "", ""), CHUNK_BYTES)):
            end_token = (index + 1) * CHUNK_BYTES * len(ids) / len(data)
            blocks = max(int(end_token / cache.block_size), 1) if cache.block_size else 1
            says.setdefault(chunk.to_bytes(8, "big"), set()).add(cached >= blocks)
    owned = await redis.zrange(PoolKeys(pool).own(instance), 0, -1)
    return Audit(
        surely=frozenset(chunk for chunk, answers in says.items() if answers == {True}),
        perhaps=frozenset(chunk for chunk, answers in says.items() if True in answers),
        owned=frozenset(owned),
    )
