"""A worker's requests in front of an engine on a real socket, which answers as the test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dualmap.admission import Admission
from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderName, OrderRule
from dualmap_service.tracing import Tracing
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.engine import Engine
from dualmap_worker.outbox import Outbox
from dualmap_worker.relay import Requests
from dualmap_worker.trace import FlowTraces

from ...waiting import eventually


def whole(body: bytes, kind: str = "application/json") -> bytes:
    """An answer as bytes; the connection ends with it."""
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class SocketEngine:
    """Answers each request with what `says` returns of its head and body; None leaves it without an answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bytes]] = []
        self.says: Callable[[asyncio.StreamWriter], Awaitable[bytes | None]] = self._fine
        self.open = 0
        self.url = ""

    async def _fine(self, _: asyncio.StreamWriter) -> bytes | None:
        return whole(b'{"usage": {"prompt_tokens": 5}}')

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            length = next((int(h[15:]) for h in head if h.lower().startswith("content-length:")), 0)
            self.asked.append((head[:-2], await reader.readexactly(length)))
            answer = await self.says(writer)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def socket_engine() -> AsyncIterator[SocketEngine]:
    """An engine that tests tell what to say."""
    engine = SocketEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield engine
    server.close()


class Worker:
    """A worker's requests and one router's outbox, whose events are collected."""

    def __init__(
        self,
        engine: Engine,
        max_queued: int = 8,
        max_outbox_bytes: int = 1 << 20,
        order: OrderName = "late-last",
        tracing: Tracing | None = None,
    ) -> None:
        # Tests wait in real time: what gives way does so at once.
        self.admission = Admission(OrderRule(order), 2048, 64, 0.97, PreemptRule(min_run_s=0.01))
        traces = FlowTraces(tracing or Tracing("worker", "w", "", 0.0), "w")
        self.requests = Requests(engine, self.admission, max_queued, lambda: None, traces)
        self.outbox = Outbox(max_outbox_bytes, 0.0)
        self.events: list[pb.Event] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._streams = 0

    async def write(self, frame: pb.WorkerFrame) -> None:
        """A frame for the router."""
        await self.gate.wait()
        self.events += frame.events

    def submit(self, tokens: int = 100, slo_s: float = 1000.0, tenant: str = "", **fields: Any) -> int:
        """Take a request; returns its stream."""
        self._streams += 1
        fields = {"method": "POST", "path": "/v1/chat/completions", "body": b"{}", "queued": True, **fields}
        placement = pb.Placement(prompt_tokens=tokens, slo_s=slo_s, feasible=True, tenant=tenant)
        submit = pb.Submit(
            stream=self._streams, request_id=f"r{self._streams}", placement=placement, **fields
        )
        self.requests.submit(submit, "router", self.outbox)
        return self._streams

    def kinds(self, stream: int) -> list[str]:
        """What was sent for a stream."""
        return [str(event.WhichOneof("what")) for event in self.events if event.stream == stream]

    def failure(self, stream: int) -> pb.Failed:
        """How a stream failed."""
        [failed] = [
            event.failed for event in self.events if event.stream == stream and event.HasField("failed")
        ]
        return failed

    async def ended(self, stream: int) -> list[str]:
        """What was sent for a stream once it has ended."""
        await eventually(lambda: {"end", "failed", "moved"} & set(self.kinds(stream)))
        return self.kinds(stream)


@pytest.fixture
async def worker(socket_engine: SocketEngine) -> AsyncIterator[Worker]:
    """A worker in front of `socket_engine`; after the test it must hold nothing."""
    engine = Engine(socket_engine.url, "", 30.0, 64)
    await engine.open()
    worker = Worker(engine)
    writer = asyncio.create_task(worker.outbox.drain(worker.write))
    yield worker
    worker.gate.set()
    await asyncio.wait_for(worker.requests.idle.wait(), 10)
    admission = worker.admission
    assert (admission.queue, admission.line, admission.running, len(worker.requests)) == ({}, [], set(), 0)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    worker.requests.close()
    await engine.close()
