"""Clients of the system in containers: a steady load whose every answer is checked, and long streams held open."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from dualmap_sim.engine.canonical import canonical_prompt
from dualmap_sim.engine.text import matches

from ..waiting import eventually
from .conftest import Compose

MODEL = "sim-model"
TOKENS = 24
ASKED_AGAIN = 4
"""How often a client asks for a cut stream in all."""
_HELD_TOKENS = 400
"""Some five seconds of decoding: longer than it takes to kill or stop a container."""
_EXTRA = {"ignore_eos": True}
_numbers = itertools.count()


def body_of(text: str, tokens: int = TOKENS) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}


def client(system: Compose, max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{system.url}/v1", api_key="none", max_retries=max_retries, timeout=60.0
    )


def _new_body(tokens: int = TOKENS) -> dict[str, Any]:
    return body_of(f"{next(_numbers)} " + "how many roads " * 200, tokens)


@dataclass
class Load:
    """Requests all the time, each checked for the text that only its prompt gives."""

    api: openai.AsyncOpenAI
    answered: int = 0
    cut: list[str] = field(default_factory=list)
    """Streams that broke off, or did not begin; the client asked again."""
    wrong: list[str] = field(default_factory=list)

    async def ask(self, stream: bool) -> None:
        body = _new_body()
        for attempt in range(ASKED_AGAIN):
            try:
                text = await (self._streamed(body) if stream else self._whole(body))
            except openai.APIError as exc:
                if not stream or attempt == ASKED_AGAIN - 1:
                    self.wrong.append(f"{'stream' if stream else 'whole'}: {type(exc).__name__}: {exc}")
                    return
                self.cut.append(f"{type(exc).__name__}: {exc}")
                continue
            if not matches(canonical_prompt(body), text, TOKENS):
                self.wrong.append(f"not the answer to this prompt: {text[:60]!r}")
            self.answered += 1
            return

    async def _whole(self, body: dict[str, Any]) -> str:
        answer = await self.api.chat.completions.create(**body, extra_body=_EXTRA)
        return answer.choices[0].message.content or ""

    async def _streamed(self, body: dict[str, Any]) -> str:
        stream = await self.api.chat.completions.create(**body, extra_body=_EXTRA, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@asynccontextmanager
async def under_load(
    system: Compose, whole: int = 3, streams: int = 3, max_retries: int = 0
) -> AsyncIterator[Load]:
    """Clients that ask one request after the other while the body runs."""
    load, going = Load(client(system, max_retries)), True

    async def one(stream: bool) -> None:
        while going:
            await load.ask(stream)

    kinds = [False] * whole + [True] * streams
    tasks = [asyncio.create_task(one(stream)) for stream in kinds]
    try:
        await eventually(lambda: load.answered >= 2 * len(kinds))
        yield load
    finally:
        going = False
        await asyncio.gather(*tasks)
        await load.api.close()


@dataclass
class HeldStream:
    """One long stream, which is in the middle when `held_streams` yields."""

    body: dict[str, Any]
    router: str = ""
    """Which router relays it, as its answer says."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    broke: str = ""
    whole: bool = False
    ended_s: float = 0.0
    """On the monotonic clock."""

    async def read(self, api: openai.AsyncOpenAI) -> None:
        try:
            raw = await api.chat.completions.with_raw_response.create(
                **self.body, extra_body=_EXTRA, stream=True
            )
            self.router = raw.headers["x-dualmap-router"]
            text = ""
            async for chunk in raw.parse():
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                self.begun.set()
        except openai.APIError as exc:
            self.broke = f"{type(exc).__name__}: {exc}"
        else:
            self.whole = matches(canonical_prompt(self.body), text, _HELD_TOKENS)
        self.ended_s = time.monotonic()


@dataclass
class Held:
    """Streams that were in the middle together."""

    streams: list[HeldStream]

    @property
    def carriers(self) -> Counter[str]:
        """How many each router relayed."""
        return Counter(stream.router for stream in self.streams)

    @property
    def broken(self) -> Counter[str]:
        """How many broke off, by the router that relayed them."""
        return Counter(stream.router for stream in self.streams if stream.broke)

    @property
    def said(self) -> list[str]:
        """What was wrong with each that did not end well."""
        return [f"{s.router}: {s.broke or 'wrong text'}" for s in self.streams if not s.whole]


@asynccontextmanager
async def held_streams(system: Compose, count: int = 12) -> AsyncIterator[Held]:
    """Streams that are all in the middle when the body begins, and have ended one way or the other after it."""
    async with client(system) as api:
        held = Held([HeldStream(_new_body(_HELD_TOKENS)) for _ in range(count)])
        reading = [asyncio.create_task(stream.read(api)) for stream in held.streams]
        async with asyncio.timeout(30):
            await asyncio.gather(*(stream.begun.wait() for stream in held.streams))
        assert not held.broken, held.said
        yield held
        await asyncio.gather(*reading)
