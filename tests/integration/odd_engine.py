"""An engine that is healthy, and answers as a test tells it."""

import contextlib
import socketserver
import threading
from collections.abc import Iterator

GOOD = b'{"id": "x", "object": "chat.completion", "choices": []}'


def answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "connection: close", *headers]
    if not any(header.startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class OddEngine(socketserver.ThreadingTCPServer):
    """Healthy when asked for its health; any POST is answered with `says`, whatever that is."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Odd)
        self.says = b""
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Odd(socketserver.StreamRequestHandler):
    server: OddEngine

    def handle(self) -> None:
        line, length = self.rfile.readline().decode("latin-1"), 0
        while (header := self.rfile.readline().strip().lower()) != b"":
            if header.startswith(b"content-length:"):
                length = int(header.split(b":")[1])
        self.rfile.read(length)
        if line.startswith("POST"):
            self.server.asked += 1
            self.wfile.write(self.server.says)
        elif "/v1/models" in line:
            self.wfile.write(answer("200 OK", b'{"data": [{"id": "sim-model", "max_model_len": 8192}]}'))
        else:
            self.wfile.write(answer("200 OK", b""))


@contextlib.contextmanager
def odd_engine() -> Iterator[OddEngine]:
    """One that runs."""
    with OddEngine() as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield engine
        engine.shutdown()
        thread.join()
