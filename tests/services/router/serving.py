"""The HTTP server on a real socket with a handler of the test's own, and a client that writes bytes as it likes."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dualmap_router.door import OpenDoor
from dualmap_router.errors import ApiError
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_server import Enter, HttpLimits, HttpServer

from ...waiting import eventually

OPEN = OpenDoor()
LIMITS = HttpLimits(max_body_bytes=1 << 20, max_held_bytes=4 << 20)
Handler = Callable[[HttpRequest, HttpResponse], Awaitable[None]]


async def echo(request: HttpRequest, response: HttpResponse) -> None:
    body = b"%b %b %b" % (request.method.encode(), request.target.encode(), request.body)
    response.send(200, [("content-type", "text/plain")], body)


@dataclass
class Served:
    server: HttpServer
    port: int
    refused: list[ApiError] = field(default_factory=list)

    @asynccontextmanager
    async def client(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(
    handler: Handler = echo,
    limits: HttpLimits = LIMITS,
    enter: Enter = OPEN.enter,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Served]:
    refused: list[ApiError] = []
    server = HttpServer(handler, limits, refused.append, enter)
    served = Served(server, await server.start("127.0.0.1", 0, tls), refused)
    try:
        async with asyncio.timeout(60):
            yield served
            # Whatever happened, nothing is held once the clients are gone.
            await eventually(lambda: not server.connections)
            assert server.room.held_bytes == 0
    finally:
        await server.stop()


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = b""
        if "content-length" in headers and not head_only:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        return int(head[0].split()[1]), headers, body

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.answer()

    async def at_end(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


def post(body: bytes, *headers: str, target: str = "/x", version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "host: a", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(target: str = "/x", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "host: a", *headers, "", ""]).encode("latin-1")


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n" + trailer + b"\r\n"


def error_of(body: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found
