"""The operator's pages over HTTP: /metrics, /healthz and /readyz."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST

from dualmap_service.lifecycle import ServiceFailedError

log = logging.getLogger(__name__)

_DEADLINE_S = 5.0
_MAX_HEAD_BYTES = 16384
_TEXT = "text/plain; charset=utf-8"


class Pages:
    """A small HTTP/1.1 server: GET and HEAD of a few pages, one exchange per connection."""

    def __init__(self, metrics: Callable[[], bytes], ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        self._server: asyncio.Server | None = None
        self._exchanges: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the base URL. Raises ServiceFailedError when the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._exchange, host, port, limit=_MAX_HEAD_BYTES)
        except OSError as exc:
            raise ServiceFailedError(f"cannot listen on {host}:{port}: {exc}") from exc
        bound = self._server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def close(self) -> None:
        """Stop listening and end what is under way."""
        if self._server is None:
            return
        self._server.close()
        for task in self._exchanges:
            task.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._server.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._exchanges.add(task)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            log.debug("pages.broken_exchange", extra={"error": str(exc)})
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self._exchanges.discard(task)

    def _response(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split()
        method, target = (words[0], words[1]) if len(words) == 3 else (b"", b"")
        status, kind, body = "405 Method Not Allowed", _TEXT, b"only GET and HEAD\n"
        if method in (b"GET", b"HEAD"):
            status, kind, body = self._page(target.partition(b"?")[0])
        lines = (f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}")
        answer = "\r\n".join((*lines, "connection: close", "", "")).encode()
        return answer if method == b"HEAD" else answer + body

    def _page(self, path: bytes) -> tuple[str, str, bytes]:
        if path == b"/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, self._metrics()
        if path == b"/healthz":
            return "200 OK", _TEXT, b"alive\n"
        if path == b"/readyz":
            ready = self._ready()
            return (
                ("200 OK", _TEXT, b"ready\n") if ready else ("503 Service Unavailable", _TEXT, b"not ready\n")
            )
        return "404 Not Found", _TEXT, b"pages: /metrics /healthz /readyz\n"
