"""The ZeroMQ side, read as one of vLLM's subscribers would."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from dualmap_sim.engine import EngineHost, EngineSpec, KvDialect, named_profile, start_engines
from dualmap_sim.engine.block_cache import extend_chain, root_hash
from dualmap_sim.engine.kv_events import END_OF_REPLAY, KVEventBatch, ZmqKvPublisher
from dualmap_sim.engine.text import encode, token_ids

PROMPT = "kv " * 64


@pytest.fixture
async def context() -> AsyncIterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as opened:
        yield opened


class Subscriber:
    def __init__(self, context: zmq.asyncio.Context, endpoint: str) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.linger = 0
        self.socket.subscribe(b"")
        self.socket.connect(endpoint)

    async def batch(self) -> tuple[int, bytes]:
        topic, seq, payload = await asyncio.wait_for(self.socket.recv_multipart(), 5)
        assert topic == b""
        return int.from_bytes(seq, "big"), payload


async def joined(
    context: zmq.asyncio.Context, host: EngineHost, http: aiohttp.ClientSession
) -> tuple[Subscriber, int]:
    """A subscriber that has got its first batch, and that batch's number: PUB drops what comes before."""
    endpoint = host.addresses[0].kv_events
    assert endpoint is not None
    subscriber = Subscriber(context, endpoint)
    async with asyncio.timeout(5):
        while not await subscriber.socket.poll(20):
            await clear(http)
    seq, _ = await subscriber.batch()
    return subscriber, seq


async def clear(http: aiohttp.ClientSession) -> None:
    async with http.post("/admin/reset_cache") as reply:
        assert reply.status == 200


async def ask(http: aiohttp.ClientSession, prompt: str = PROMPT, tokens: int = 1, **more: Any) -> None:
    async with http.post("/v1/completions", json={"prompt": prompt, "max_tokens": tokens, **more}) as reply:
        assert reply.status == 200


async def replay(context: zmq.asyncio.Context, host: EngineHost, first: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(host.addresses[0].kv_replay or "")
        await socket.send_multipart((b"", first.to_bytes(8, "big")))
        while True:
            empty, topic, seq, payload = await asyncio.wait_for(socket.recv_multipart(), 5)
            assert (empty, topic) == (b"", b"")
            if seq == END_OF_REPLAY:
                assert payload == b""
                return found
            found[int.from_bytes(seq, "big")] = payload


async def test_a_prefill_is_announced_with_its_chain(
    host: EngineHost, http: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    subscriber, last_seq = await joined(context, host, http)
    with subscriber.socket:
        await ask(http)
        while True:
            seq, payload = await subscriber.batch()
            assert seq == last_seq + 1
            last_seq = seq
            ts, events, rank = msgspec.msgpack.decode(payload)
            if events[0]["type"] == "BlockStored":
                break
    tokens = encode(PROMPT.encode())
    chain = extend_chain(root_hash(""), tokens, 64)
    assert ts > 0
    assert rank == 0
    assert list(events[0]) == [
        "type",
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "group_idx",
    ]
    assert events[0]["block_hashes"] == chain
    assert events[0]["parent_block_hash"] is None
    assert events[0]["token_ids"] == token_ids(tokens)
    assert (events[0]["block_size"], events[0]["medium"], events[0]["group_idx"]) == (16, "GPU", 0)
    assert msgspec.msgpack.decode(payload, type=KVEventBatch).events


async def test_later_blocks_name_their_parent_and_their_adapter(
    host: EngineHost, http: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    await ask(http, tokens=17, model="sim-lora", cache_salt="tenant")
    batches = await replay(context, host, 0)
    events = [event for payload in batches.values() for event in msgspec.msgpack.decode(payload)[1]]
    assert [event["lora_name"] for event in events] == ["sim-lora", "sim-lora"]
    assert events[0]["lora_id"] == 1
    assert events[0]["extra_keys"] == [["sim-lora", "tenant"], None, None]
    assert events[1]["parent_block_hash"] == events[0]["block_hashes"][-1]
    assert len(events[1]["token_ids"]) == 16


async def test_a_gap_is_filled_by_replay(
    host: EngineHost, http: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    subscriber, _ = await joined(context, host, http)
    with subscriber.socket:
        await ask(http, "before " * 40)
        await clear(http)
        live: dict[int, bytes] = {}
        while not live or b"AllBlocksCleared" not in live[max(live)]:
            seq, payload = await subscriber.batch()
            live[seq] = payload
    missed_from = max(live) + 1
    for index in range(5):
        await ask(http, f"missed {index} " * 40)
    replayed = await replay(context, host, missed_from)
    assert sorted(replayed) == list(range(missed_from, missed_from + 5))
    everything = await replay(context, host, 0)
    assert sorted(everything) == list(range(missed_from + 5))
    assert all(everything[seq] == payload for seq, payload in {**live, **replayed}.items())


async def test_eviction_is_announced_and_the_buffer_is_bounded(context: zmq.asyncio.Context) -> None:
    profile = named_profile("fast").override(num_kv_blocks=16, max_model_len=256)
    async with await start_engines([EngineSpec(profile, kv_buffer_steps=4)]) as host:
        async with aiohttp.ClientSession(host.addresses[0].url) as http:
            for index in range(8):
                await ask(http, f"{index}" * 4 * 16 * 5)
        batches = await replay(context, host, 0)
        assert sorted(batches) == [4, 5, 6, 7]
        removed, stored = msgspec.msgpack.decode(batches[7])[1]
        assert list(removed) == ["type", "block_hashes", "medium", "group_idx"]
        assert removed["type"] == "BlockRemoved"
        assert stored["type"] == "BlockStored"
        assert set(removed["block_hashes"]).isdisjoint(stored["block_hashes"])


async def test_a_restart_begins_anew_on_the_same_ports(
    host: EngineHost, http: aiohttp.ClientSession, context: zmq.asyncio.Context
) -> None:
    before = host.addresses[0]
    await ask(http)
    await ask(http, "other" * 40)
    await host.restart(0)
    assert host.addresses[0] == before
    assert await replay(context, host, 0) == {}
    await ask(http)
    assert list(await replay(context, host, 0)) == [0]


async def test_the_older_dialect_is_arrays_and_has_no_topic_in_replay(context: zmq.asyncio.Context) -> None:
    spec = EngineSpec(named_profile("fast"), kv_dialect=KvDialect.ARRAY)
    async with await start_engines([spec]) as host:
        async with aiohttp.ClientSession(host.addresses[0].url) as http:
            await ask(http)
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(host.addresses[0].kv_replay or "")
            await socket.send_multipart((b"", (0).to_bytes(8, "big")))
            frames = await asyncio.wait_for(socket.recv_multipart(), 5)
            assert (await asyncio.wait_for(socket.recv_multipart(), 5))[1] == END_OF_REPLAY
    assert len(frames) == 3
    _, ((kind, hashes, parent, tokens, block_size, lora_id),), _ = msgspec.msgpack.decode(frames[2])
    assert (kind, len(hashes), parent, len(tokens), block_size, lora_id) == (
        "BlockStored",
        3,
        None,
        48,
        16,
        None,
    )


def test_a_taken_port_is_told_and_leaks_nothing() -> None:
    first = ZmqKvPublisher(16)
    port = int((first.endpoint or "").rsplit(":", 1)[1])
    with pytest.raises(zmq.ZMQError):
        ZmqKvPublisher(16, port=port)
    first.close()
    ZmqKvPublisher(16, port=port).close()
