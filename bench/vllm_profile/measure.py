"""Time to first token over a grid of (uncached, cached) tokens, and the time of a decode step, of a running vLLM."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp
import msgspec

# Ordinary tokens in every vocabulary; those of dummy weights need no meaning.
_TOKENS = range(100, 400)
_PARALLEL = 16
_DECODES = 64
_SIZES = ("block_size", "num_gpu_blocks")


class ProfileError(RuntimeError):
    """The engine does not do what a profile needs."""


@dataclass(frozen=True)
class Point:
    """One prefill, measured a few times."""

    uncached: int
    cached: int
    seconds: Sequence[float]

    @property
    def median_s(self) -> float:
        return median(self.seconds)


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself."""

    model: str
    max_model_len: int
    block_size: int
    num_kv_blocks: int


@dataclass
class Measured:
    """All of one run."""

    facts: EngineFacts
    points: list[Point] = field(default_factory=list)
    decode_step_s: float = 0.0
    decode_s_per_seq: float = 0.0


class Probe:
    """A client that times one vLLM, which must have nothing else to do."""

    def __init__(self, http: aiohttp.ClientSession, url: str, seed: int = 0) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._random = random.Random(seed)
        # Nothing that an earlier run left in the cache.
        self._salt = f"profile-{time.time_ns()}"
        self.facts = EngineFacts("", 0, 0, 0)

    async def learn(self) -> EngineFacts:
        """Ask the engine what it is."""
        async with self._http.get(f"{self._url}/v1/models") as answer:
            card = (await answer.json())["data"][0]
        async with self._http.get(f"{self._url}/metrics") as answer:
            config = re.search(r"^vllm:cache_config_info\{(.*)\}", await answer.text(), re.MULTILINE)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', config.group(1))) if config else {}
        sizes = [int(labels.get(name, "")) if labels.get(name, "").isdecimal() else 0 for name in _SIZES]
        self.facts = EngineFacts(card["id"], card["max_model_len"], *sizes)
        return self.facts

    async def column(self, cached: int, uncached: Sequence[int], repeats: int) -> list[Point]:
        """The points behind one cached prefix."""
        prefix = self._tokens(cached)
        points = []
        for num_tokens in uncached:
            if cached:
                await self._first_token(prefix)
            times = [await self._prefill(prefix, num_tokens) for _ in range(repeats + 1)]
            # The first of a shape may compile or allocate.
            seconds = [took_s for took_s, _ in times[1:]]
            found = min(hit for _, hit in times)
            points.append(Point(cached + num_tokens - found, found, seconds))
        return points

    async def _prefill(self, prefix: list[int], num_tokens: int) -> tuple[float, int]:
        """(seconds, tokens found in the cache)."""
        return await self._first_token(prefix + self._tokens(num_tokens))

    async def _first_token(self, prompt: list[int]) -> tuple[float, int]:
        took_s, usage = 0.0, None
        begun_s = time.perf_counter()
        async for event in self._stream(prompt, 1):
            took_s = took_s or time.perf_counter() - begun_s
            usage = event.get("usage") or usage
        details = (usage or {}).get("prompt_tokens_details")
        if details is None:
            raise ProfileError(
                "the engine does not tell cached tokens: start it with --enable-prompt-tokens-details"
            )
        return took_s, details["cached_tokens"] or 0

    async def decode_step(self, parallel: int) -> float:
        """Seconds from token to token while so many sequences decode."""

        async def gap_s() -> float:
            stream = self._stream(self._tokens(16), _DECODES)
            times = [time.perf_counter() async for event in stream if event["choices"]]
            # Over all of them: tokens may come in bursts.
            return (times[-1] - times[0]) / (_DECODES - 1)

        return median(await asyncio.gather(*(gap_s() for _ in range(parallel))))

    def _tokens(self, count: int) -> list[int]:
        return self._random.choices(_TOKENS, k=count)

    async def _stream(self, prompt: list[int], max_tokens: int) -> AsyncIterator[Any]:
        """The events of a streamed completion."""
        body = {
            "model": self.facts.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": self._salt,
        }
        async with self._http.post(f"{self._url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                raise ProfileError(f"the engine answers {answer.status}: {(await answer.text())[:500]}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    yield msgspec.json.decode(line[len(b"data: ") :])


async def measure(url: str, uncached: Sequence[int], cached: Sequence[int], repeats: int) -> Measured:
    """The whole grid; points longer than the engine's model allows are left out."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        probe = Probe(http, url)
        measured = Measured(await probe.learn())
        room = measured.facts.max_model_len - 1
        await probe.column(0, [min(uncached)], 1)
        for prefix in cached:
            fits = [num_tokens for num_tokens in uncached if prefix + num_tokens <= room]
            measured.points += await probe.column(prefix, fits, repeats)
        alone_s, together_s = await probe.decode_step(1), await probe.decode_step(_PARALLEL)
        measured.decode_s_per_seq = max(together_s - alone_s, 0.0) / (_PARALLEL - 1)
        measured.decode_step_s = max(alone_s - measured.decode_s_per_seq, 0.0)
        return measured
