"""A late prefill leaves real vLLM for a request that can be in time, and resumes from the blocks it had finished."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
import zmq
import zmq.asyncio

from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions

from ..integration.load_checks import metric, rebalancer_url
from ..waiting import eventually
from .conftest import MODEL, ready, start_vllm, stop

STEP_TOKENS = 256
LONG_TOKENS = 7800
_CHANCE = random.Random(11)


def prompt(tokens: int) -> list[int]:
    """Token ids that no other prompt shares."""
    return [_CHANCE.randrange(10, 500) for _ in range(tokens)]


class Blocks:
    """The blocks that vLLM says it stored, in order."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self.stored: list[tuple[int, ...]] = []
        self.block_size = 0

    async def follow(self) -> None:
        """Read for ever."""
        while True:
            _, _, payload = await self._socket.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                kind, ids, size = _stored(event)
                if kind == "BlockStored":
                    self.block_size = size
                    self.stored += [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]

    def places(self, tokens: list[int]) -> list[int]:
        """Where in the stream each block of a prompt was first stored, as far as it was."""
        size = self.block_size
        chain = [tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)]
        first = {block: place for place, block in reversed(list(enumerate(self.stored)))}
        return [first[block] for block in chain if block in first]

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def _stored(event: Any) -> tuple[str, list[int], int]:
    """(kind, token ids, block size) of an event, in either of vLLM's shapes."""
    if isinstance(event, dict):
        return str(event["type"]), event.get("token_ids", []), event.get("block_size", 0)
    return str(event[0]), event[3] if len(event) > 4 else [], event[4] if len(event) > 4 else 0


@pytest.fixture(scope="module")
def engine(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """(URL, KV events, their replay) of a vLLM whose steps are short, as a prefill of many steps wants it."""
    logs = tmp_path_factory.mktemp("vllm-preempt-logs")
    events, replay = f"ipc://{logs}/kv", f"ipc://{logs}/replay"
    child, url = start_vllm(
        "vllm-preempt", models, logs, events, replay,
        "--max-model-len", "8192", "--max-num-batched-tokens", str(STEP_TOKENS), "--max-num-seqs", "16",
    )  # fmt: skip
    try:
        asyncio.run(ready([url], [child]))
        yield url, events, replay
    finally:
        asyncio.run(stop([child]))


@pytest.fixture
async def one(engine: tuple[str, str, str]) -> AsyncIterator[Stack]:
    """A router, a worker and a rebalancer in front of that one."""
    options = StackOptions(
        engine_urls=[engine[0]],
        kv_urls={engine[0]: engine[1:]},
        routers=1,
        pool="preempt",
        slo_s=60.0,
        worker_flags={"step_tokens": STEP_TOKENS},
    )
    async with Stack(options) as stack:
        yield stack


@pytest.fixture
async def blocks(engine: tuple[str, str, str]) -> AsyncIterator[Blocks]:
    """What the engine stores from now on."""
    blocks = Blocks(engine[1])
    task = asyncio.create_task(blocks.follow())
    yield blocks
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    blocks.close()


async def test_the_resumed_prefill_recomputes_no_more_than_a_block(one: Stack, blocks: Blocks) -> None:
    async with openai.AsyncOpenAI(base_url=f"{one.router_urls[0]}/v1", api_key="none", max_retries=0) as api:
        create: Any = api.completions.create
        settings: Any = {
            "model": MODEL,
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {"ignore_eos": True},
        }

        async def ask(tokens: list[int], slo_s: float) -> tuple[str, Any, float, list[str]]:
            """(text, usage, TTFT, chunk ids) of an answer."""
            began_s, ttft_s, text, usage, ids = time.monotonic(), 0.0, "", None, []
            headers = {"x-dualmap-slo-ttft-ms": str(int(slo_s * 1000))}
            async for piece in await create(prompt=tokens, extra_headers=headers, **settings):
                ttft_s = ttft_s or time.monotonic() - began_s
                ids.append(piece.id)
                usage = piece.usage or usage
                text += "".join(choice.text for choice in piece.choices)
            return text, usage, ttft_s, ids

        # The worker learns how slow this engine is: it could not tell a late prefill from one that overruns.
        for tokens in (500, 3000, 1500, 4000):
            await ask(prompt(tokens), 60.0)
        long, short = prompt(LONG_TOKENS), prompt(400)
        waiting = asyncio.create_task(ask(long, 0.05))
        await eventually(lambda: len(blocks.places(long)) * blocks.block_size >= LONG_TOKENS // 4, 60)
        _, _, short_s, _ = await ask(short, 60.0)
        assert not waiting.done()
        text, usage, long_s, ids = await waiting
        again, _, _, _ = await ask(long, 60.0)

    url = await rebalancer_url(one)
    assert await metric(url, "dualmap_rebalancer_preemptions_total") == 1
    assert short_s < long_s / 2
    # What it had stored when the other one began stayed, but for the block that was not full.
    [begun, *_] = blocks.places(short)
    done = sum(place < begun for place in blocks.places(long)) * blocks.block_size
    cached = usage.prompt_tokens_details.cached_tokens
    assert LONG_TOKENS // 4 <= done < LONG_TOKENS
    assert cached >= done - blocks.block_size
    # The client sees one answer, the one that the prompt has.
    assert (text, len(set(ids))) == (again, 1)
    assert (usage.prompt_tokens, usage.completion_tokens) == (LONG_TOKENS, 8)
    left = await settle(one.redis_url, "preempt", one.router_urls)
    assert left.clean, left
    async with aiohttp.ClientSession() as http, http.get(f"{one.engine_urls[0]}/metrics") as page:
        metrics = await page.text()
    assert "vllm:num_requests_running" in metrics
    running = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
    assert all(line.endswith(" 0.0") for line in running)
