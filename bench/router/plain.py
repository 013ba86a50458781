"""Beside the router, (b): the same duties with the parts that one reaches for first.

Written for this bench, and not any product: aiohttp.web for HTTP, pydantic for the body, redis-py's connection pool
with three commands a request (read the loads; book; give back), and one gRPC unary-stream call a request to a
small server beside each engine (plain_worker.py). It picks the least booked worker: no prefix hashing, no rings,
no queue, no retry, no metrics. The plain arrangement thus does less than the router.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import uvloop
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis

from bench.router.plain_worker import METHOD
from bench.router.proxy import serve

_LOADS = "plain:loads"


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    """The body of a chat completion, as far as a router reads it."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message]
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None


class Plain:
    """The plain router."""

    def __init__(self, redis: Any, channels: dict[str, grpc.aio.Channel]) -> None:
        self._redis = redis
        # No serializers: the messages are bytes as they are.
        self._calls: dict[str, Any] = {
            address: channel.unary_stream(METHOD, None, None) for address, channel in channels.items()
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One chat completion."""
        body = await request.read()
        try:
            chat = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        loads = await self._redis.hgetall(_LOADS)
        worker = min(self._calls, key=lambda address: int(loads.get(address.encode(), 0)))
        await self._redis.hincrby(_LOADS, worker, 1)
        try:
            return await self._answer(request, body, chat.stream, worker)
        finally:
            await self._redis.hincrby(_LOADS, worker, -1)

    async def _answer(
        self, request: web.Request, body: bytes, stream: bool, worker: str
    ) -> web.StreamResponse:
        answer = aiter(self._calls[worker](body))
        status = int(await anext(answer))
        if not stream:
            chunks = [chunk async for chunk in answer]
            return web.Response(status=status, body=b"".join(chunks), content_type="application/json")
        response = web.StreamResponse(status=status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        async for chunk in answer:
            await response.write(chunk)
        await response.write_eof()
        return response


async def _main(redis_url: str, workers: list[str]) -> None:
    redis: Any = Redis.from_url(redis_url)  # its stub has no hash commands that are awaitable
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose)
        channels = {
            address: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for address in workers
        }
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", Plain(redis, channels).handle)
        await serve(app)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--worker", action="append", required=True)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(given.redis, given.worker))
