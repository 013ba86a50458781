"""A router's sessions and workers' servicers joined in memory: a clock that jumps, bytes that are cut anywhere.

Nothing is reordered or lost but whole connections. Everything between `Pilot` and the engine is the services' own:
sessions, HTTP/2 framing, servicer, queue, flows. Only sockets and the engine are the test's.
"""

import asyncio
import itertools
import selectors
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.servicers import DataServicer


class _Selector(selectors.SelectSelector):
    """Waits for nothing: the time that would be waited has passed."""

    def __init__(self, loop: "MemoryLoop") -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.now_s += timeout or 0.0
        return super().select(0)


class MemoryLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own and hosts that are servicers."""

    def __init__(self, cuts: Sequence[int]) -> None:
        self.now_s = 1000.0
        self.hosts: dict[int, DataServicer] = {}
        self.links: list[Link] = []
        self._cuts = itertools.cycle(cuts or (1 << 20,))
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now_s

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """To the servicer at that port."""
        servicer = self.hosts.get(port)
        if servicer is None:
            raise ConnectionRefusedError
        protocol = protocol_factory()
        link = Link(self, port, servicer, protocol, self._cuts)
        self.links.append(link)
        protocol.connection_made(link)
        return link, protocol


class Link(asyncio.Transport):
    """One connection: the client's transport, and the server behind it."""

    def __init__(
        self,
        loop: MemoryLoop,
        port: int,
        servicer: DataServicer,
        protocol: asyncio.Protocol,
        cuts: "itertools.cycle[int]",
    ) -> None:
        super().__init__()
        self.port = port
        self.streams: set[int] = set()
        self._loop = loop
        self._protocol = protocol
        self._cuts = cuts
        self._got = b""
        self._preface = True
        self._closed = False
        self._frames: asyncio.Queue[pb.RouterFrame | None] = asyncio.Queue()
        window = (1 << 30).to_bytes(4, "big")
        self._send(_frame(4) + _frame(8, window) + _frame(8, window, 1) + _frame(1, b"\x88", 1, 4))
        self._task = loop.create_task(servicer.Session(self._read(), ServerContext(self)))  # type: ignore[arg-type]
        self._task.add_done_callback(lambda _: self.abort())

    # The client's side

    def write(self, data: Any) -> None:
        if not self._closed:
            self._got += data
            self._parse()

    def is_closing(self) -> bool:
        return self._closed

    def abort(self) -> None:
        """Cut it: both ends learn so in their next turns."""
        if self._closed:
            return
        self._closed = True
        self._loop.links.remove(self)
        self._frames.put_nowait(None)
        self._task.cancel()
        self._loop.call_soon(self._protocol.connection_lost, None)

    def _parse(self) -> None:
        if self._preface:
            self._got, self._preface = self._got.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), False
        while len(self._got) >= 9:
            size, kind, flags = int.from_bytes(self._got[:3], "big"), self._got[3], self._got[4]
            payload, self._got = self._got[9 : 9 + size], self._got[9 + size :]
            if kind == 0:
                # Messages here are smaller than a frame.
                frame = pb.RouterFrame.FromString(payload[5:])
                self.streams.update(submit.stream for submit in frame.submits)
                self._frames.put_nowait(frame)
            elif kind == 6 and not flags & 1:
                self._send(_frame(6, payload, 0, 1))

    # The server's side

    async def _read(self) -> AsyncIterator[pb.RouterFrame]:
        while (frame := await self._frames.get()) is not None:
            yield frame

    async def write_frame(self, data: bytes) -> None:
        """A gRPC message, cut as it comes."""
        self._send(_frame(0, b"\0" + len(data).to_bytes(4, "big") + data, 1))

    def _send(self, data: bytes) -> None:
        while data:
            size = next(self._cuts)
            self._loop.call_soon(self._deliver, data[:size])
            data = data[size:]

    def _deliver(self, data: bytes) -> None:
        if not self._closed:
            self._protocol.data_received(data)


class ServerContext:
    """What a servicer sees of its link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def write(self, frame: pb.WorkerFrame) -> None:
        await self._link.write_frame(frame.SerializeToString())


def _frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
