"""A small real OpenAI endpoint whose behaviour a prompt's session picks."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

TEXT = ["one", " two", " three"]
USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}
HEADERS = {
    "x-dualmap-instance": "i-1",
    "x-dualmap-router": "r-1",
    "x-dualmap-reason": "affinity",
    "x-dualmap-candidates": "i-1,i-2",
    "x-dualmap-cached-chunks": "4",
    "x-dualmap-predicted-ttft-ms": "12.5",
    "x-dualmap-moves": "1",
}


@dataclass
class Endpoint:
    """Answers as the `x-test-mode` header asks, and keeps what it was sent."""

    url: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "served-model"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.arrived.set()
        try:
            return await self._answer(request, request.headers.get("x-test-mode", "normal"))
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, mode: str) -> web.StreamResponse:
        if mode == "error":
            return web.json_response({"error": {"message": "boom", "type": "server_error"}}, status=500)
        if mode == "garbage":
            return web.Response(body=b"<html>", content_type="text/html")
        if mode == "hang_head":
            await self.release.wait()
        if not self.bodies[-1]["stream"]:
            choice = {"message": {"content": "".join(TEXT)}, "text": "".join(TEXT)}
            return web.json_response({"choices": [choice], "usage": USAGE}, headers=HEADERS)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **HEADERS})
        await response.prepare(request)
        if mode == "empty":
            await response.write(event("[DONE]"))
            return response
        for text in TEXT:
            if mode == "slow":
                await asyncio.sleep(0.05)
            await response.write(event(chunk(request.path, text)))
            if mode == "hang":
                await self.release.wait()
            if mode == "cut":
                assert request.transport is not None
                request.transport.abort()
                return response
        if mode == "short":
            return response
        if mode == "error_event":
            await response.write(event({"error": {"message": "engine died"}}))
        await response.write(event({"choices": [], "usage": USAGE}))
        for _ in range(2 if mode == "double" else 1):
            await response.write(event("[DONE]"))
        return response


def chunk(path: str, text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}} if "chat" in path else {"text": text}]}


def event(payload: object) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}\n\n".encode()


@asynccontextmanager
async def serve() -> AsyncIterator[Endpoint]:
    """A listening endpoint."""
    endpoint = Endpoint()
    app = web.Application(client_max_size=2**24)
    app.router.add_get("/v1/models", endpoint.models)
    app.router.add_post("/v1/completions", endpoint.answer)
    app.router.add_post("/v1/chat/completions", endpoint.answer)
    runner = web.AppRunner(app, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    endpoint.url = f"http://{host}:{port}"
    try:
        yield endpoint
    finally:
        endpoint.release.set()
        await runner.cleanup()
