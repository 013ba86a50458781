"""An engine that keeps what it was asked, head and body: for tests of what reaches engines and what comes back."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

GOOD = b'{"id": "x", "object": "chat.completion", "choices": []}'


class RecordingEngine:
    """Healthy; answers every POST with a completion and `headers`."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        """Each POST as it came."""
        self.headers: tuple[str, ...] = ()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            body = await reader.readexactly(length)
            answer = (
                b'{"data": [{"id": "sim-model", "max_model_len": 8192}]}'
                if b"/v1/models" in lines[0]
                else b""
            )
            headers: tuple[str, ...] = ()
            if head.startswith(b"POST"):
                self.asked.append(head + body)
                answer, headers = GOOD, self.headers
            own = (f"content-length: {len(answer)}", "content-type: application/json", "connection: close")
            writer.write("\r\n".join(["HTTP/1.1 200 OK", *own, *headers, "", ""]).encode() + answer)
            await writer.drain()
        writer.close()

    def last(self) -> tuple[dict[str, str], bytes]:
        """(headers, body) of the last POST."""
        head, _, body = self.asked[-1].partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


@asynccontextmanager
async def recording_engine() -> AsyncIterator[RecordingEngine]:
    """One that listens."""
    engine = RecordingEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0, limit=1 << 22)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield engine
    server.close()


@contextmanager
def recording_engine_aside() -> Iterator[RecordingEngine]:
    """One in a thread of its own, which outlives a test's event loop."""
    found: list[RecordingEngine] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with recording_engine() as engine:
            found.append(engine)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        stop.set()
        thread.join(10)
