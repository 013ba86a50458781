"""Conversations through real vLLM: how much of their prompts meets its cache, by vLLM's own count."""

import asyncio
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass

import aiohttp
import pytest

from dualmap_cli.stack import Stack

from ..kv_audit import tokenize
from .conftest import BLOCK_TOKENS, MODEL, Report

pytestmark = pytest.mark.timeout(300)

CONVERSATIONS = 12
TURNS = 4


@dataclass(frozen=True)
class Answer:
    """What a client saw of one request."""

    instance: str
    prompt: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    predicted_s: float
    ttft_s: float


async def ask(http: aiohttp.ClientSession, url: str, prompt: str, policy: str) -> Answer:
    """One streamed completion."""
    body = {
        "model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    began_s, ttft_s, text, usage = time.monotonic(), 0.0, "", {}
    headers = {"x-dualmap-policy": policy}
    async with http.post(f"{url}/v1/completions", json=body, headers=headers) as reply:
        assert reply.status == 200
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            ttft_s = ttft_s or time.monotonic() - began_s
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            text += "".join(choice["text"] for choice in event["choices"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        predicted_s = float(reply.headers["x-dualmap-predicted-ttft-ms"]) / 1e3
        instance = reply.headers["x-dualmap-instance"]
    return Answer(instance, prompt, text, usage["prompt_tokens"], cached, predicted_s, ttft_s)


async def converse(system: Stack, http: aiohttp.ClientSession, seed: int, policy: str) -> list[Answer]:
    """Every conversation's turns, the next when the last is answered; all conversations side by side."""
    rng = random.Random(seed)
    system_prompt = "the quick brown fox jumps over the lazy dog " * 100

    async def one(number: int) -> list[Answer]:
        said, answers = f"{seed}-{number} {system_prompt}", []
        for turn in range(TURNS):
            said += "".join(rng.choices("abcdefgh", k=300))
            answer = await ask(http, system.router_urls[(number + turn) % 2], said, policy)
            answers.append(answer)
            said += answer.text + "\n"
        return answers

    by_conversation = await asyncio.gather(*(one(number) for number in range(CONVERSATIONS)))
    return [answer for turn in zip(*by_conversation, strict=True) for answer in turn]


async def best_share(system: Stack, http: aiohttp.ClientSession, answers: list[Answer]) -> float:
    """The share of prompt tokens that caches without bounds would have had, each request where it was placed."""
    caches: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    cached = 0
    for answer in answers:
        ids = await tokenize(http, system.engine_urls[0], MODEL, answer.prompt)
        prefixes = [tuple(ids[:stop]) for stop in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS)]
        cache = caches[answer.instance]
        # The last token is always computed.
        found = next((i for i, prefix in enumerate(prefixes) if prefix not in cache), len(prefixes))
        cached += min(found, (len(ids) - 1) // BLOCK_TOKENS) * BLOCK_TOKENS
        cache.update(prefixes)
    return cached / sum(answer.prompt_tokens for answer in answers)


def share(answers: list[Answer]) -> float:
    return sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)


async def test_conversations_meet_their_cache(
    system: Stack, http: aiohttp.ClientSession, report: Report
) -> None:
    ours = await converse(system, http, 1, "dualmap")
    turns = await converse(system, http, 2, "round-robin")
    best = await best_share(system, http, ours)
    errors = sorted(abs(answer.ttft_s - answer.predicted_s) for answer in ours)
    times = sorted(answer.ttft_s for answer in ours)
    report(
        f"multi-turn, {CONVERSATIONS} conversations of {TURNS} turns: {share(ours):.1%} of prompt tokens cached "
        f"(best for the placement {best:.1%}, round-robin {share(turns):.1%}); "
        f"TTFT p50 {times[len(times) // 2]:.2f} s, p90 {times[len(times) * 9 // 10]:.2f} s, prediction off by "
        f"p50 {errors[len(errors) // 2]:.2f} s, p90 {errors[len(errors) * 9 // 10]:.2f} s"
    )
    assert len({answer.instance for answer in ours}) > 1, "one instance did it all"
    assert share(ours) > best - 0.02
    assert share(ours) > share(turns) + 0.10
