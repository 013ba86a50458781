"""Clients that leave, dawdle, or only connect."""

import asyncio
import contextlib
import itertools
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..world import World
from . import base
from .base import Fault

_numbers = itertools.count(1)


def _request(answer_tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": "sim-model",
        "prompt": f"odd client {next(_numbers)} " + "lorem ipsum " * 200,
        "max_tokens": answer_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=4096)


@dataclass
class ClientFault(Fault):
    """Connections to every router; `apply` opens them and `heal` lets go of them."""

    _tasks: "list[asyncio.Task[None]]" = field(default_factory=list, init=False)

    promise = base.CLIENT
    num_clients: ClassVar[int] = 20

    async def apply(self, world: World) -> None:
        for number in range(self.num_clients):
            url = world.router_urls[number % len(world.router_urls)]
            self._tasks.append(asyncio.create_task(self._client(url)))

    async def heal(self, world: World) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, url: str) -> None:
        # A router may be down: then there is nobody to be odd to.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await _connect(url)
            try:
                await self.talk(reader, writer)
            finally:
                writer.transport.abort()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What the client does before it is gone."""
        raise NotImplementedError


class ClientsVanish(ClientFault):
    """They ask, read the beginning, and are gone."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_request(2000))
        await reader.readexactly(400)


class ClientsVanishUnanswered(ClientFault):
    """They ask and are gone before anything comes back."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_request(50))
        await writer.drain()
        await asyncio.sleep(0.005)


class ClientsDawdle(ClientFault):
    """They read a few bytes at a time, and leave when they have had enough."""

    num_clients = 6
    lasts_s = (4.0, 8.0)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_request(300))
        for _ in range(200):
            if not await reader.read(64):
                break
            await asyncio.sleep(0.05)


class ConnectionStorm(ClientFault):
    """Three hundred connections at once that say half a request and stay."""

    num_clients = 300
    lasts_s = (2.0, 5.0)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_request(1)[:40])
        await reader.read(1)
