"""HTTP details that every endpoint shares."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from dualmap_sim.engine.errors import ApiError

_REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_reply(body: Mapping[str, Any] | list[Any], status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def request_id_of(http: web.Request) -> str:
    """The client's X-Request-Id, or one made up."""
    return http[_REQUEST_ID]


async def open_stream(http: web.Request) -> web.StreamResponse:
    """Send the head of an event stream at once, as vLLM's server does; the first event comes with a token."""
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Request-Id": request_id_of(http)}
    reply = web.StreamResponse(headers=headers)
    await reply.prepare(http)
    return reply


async def cut_connection(http: web.Request) -> None:
    """Break the connection as a dying process would, and end the handler by its cancellation."""
    if http.transport is not None:
        http.transport.abort()
    await asyncio.Event().wait()


@web.middleware
async def api_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every response its X-Request-Id and every refusal vLLM's body."""
    request[_REQUEST_ID] = request.headers.get("X-Request-Id") or uuid.uuid4().hex
    try:
        reply = await handler(request)
    except ApiError as error:
        reply = json_reply(error.body(), error.status)
    except web.HTTPException as error:
        status, text = error.status, error.text or error.reason
        reply = json_reply(ApiError(status, error.reason, text).body(), status)
    if not reply.prepared:
        reply.headers["X-Request-Id"] = request_id_of(request)
    return reply
