"""A proxy whose engine somebody else chooses: what the oracle and Dynamo's selection service stand behind."""

import asyncio
import uuid
from typing import Protocol

import aiohttp
import msgspec
from aiohttp import web

from bench.router.proxy import DROP
from dualmap_sim.engine import canonical_prompt
from dualmap_sim.engine.text import encode


class Chooser(Protocol):
    """Who decides; a request is known by an id."""

    async def choose(self, request_id: str, prompt: bytes) -> str:
        """The URL of the engine that gets a request with this tokenized prompt."""

    def began(self, request_id: str) -> None:
        """Its first byte came."""

    def ended(self, request_id: str) -> None:
        """It is over, whatever way."""


class Front:
    """Forwards every request to the engine that is chosen for it."""

    def __init__(self, chooser: Chooser, http: aiohttp.ClientSession) -> None:
        self._chooser = chooser
        self._http = http

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        request_id = uuid.uuid4().hex
        prompt = encode(canonical_prompt(msgspec.json.decode(body)))
        try:
            engine = await self._chooser.choose(request_id, prompt)
            return await self._forward(request, body, engine, request_id)
        finally:
            self._chooser.ended(request_id)

    async def _forward(
        self, request: web.Request, body: bytes, engine: str, request_id: str
    ) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROP}
        async with self._http.post(engine + request.path_qs, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            first = True
            async for chunk in answer.content.iter_any():
                if first:
                    first = False
                    self._chooser.began(request_id)
                await response.write(chunk)
            await response.write_eof()
            return response


def open_http() -> aiohttp.ClientSession:
    """A client without bounds of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    )


async def serve(front: Front, port: int) -> None:
    """Listen until ended."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/readiness", _ready)
    app.router.add_route("POST", "/{path:.*}", front.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def _ready(_: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})
