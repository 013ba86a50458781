"""gRPC sessions: one long-lived stream to each worker carries all requests of this router.

Frames batch: whatever is to be sent in one event-loop turn leaves together. An exchange is one attempt at
one request; the session hands it its events. When the session is lost, every exchange on it learns so, and
the flight decides whether the request may start elsewhere.
"""

import asyncio
import itertools
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable

import grpc

from dualmap_service.registry import Membership
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerDataStub

log = logging.getLogger(__name__)

_MAX_FRAME_BYTES = 1 << 20
_MAX_BACKOFF_S = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # One TCP connection per session: channels to one address would otherwise share it.
    ("grpc.use_local_subchannel_pool", 1),
)


class Exchange:
    """One attempt at a request on one session: its events in order, at most `max_bytes` of them unread."""

    __slots__ = ("_bytes", "_events", "_max_bytes", "_session", "_waiter", "ended", "overflowed", "stream")

    def __init__(self, session: "Session", stream: int, max_bytes: float) -> None:
        self._session = session
        self.stream = stream
        self._events: deque[pb.Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._bytes = 0
        self._max_bytes = max_bytes
        self.ended = False
        self.overflowed = False

    def feed(self, event: pb.Event) -> None:
        """Take an event from the session."""
        if self.ended:
            return
        self._events.append(event)
        self._bytes += len(event.data)
        kind = event.WhichOneof("what")
        if kind in ("end", "moved", "failed"):
            self.ended = True
            self._session.forget(self.stream)
        elif self._bytes > self._max_bytes:
            self.overflowed = True
            self.cancel()
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> pb.Event | None:
        """The next event; None when the exchange was cancelled or woken with nothing to read."""
        if not self._events:
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.pop()

    def pop(self) -> pb.Event | None:
        """The next event that is already here."""
        if not self._events:
            return None
        event = self._events.popleft()
        self._bytes -= len(event.data)
        return event

    def peek_data(self) -> bytes | None:
        """The bytes of the next event, if it is here and is data."""
        if not self._events or self._events[0].WhichOneof("what") != "data":
            return None
        return self._events[0].data

    def cancel(self) -> None:
        """Nobody waits any more: the worker stops the request wherever it is."""
        if not self.ended:
            self.ended = True
            self._session.cancel(self.stream)
            self.wake()


class Session:
    """The stream to one worker, reconnected until closed."""

    def __init__(
        self, instance: str, address: str, hello: pb.Hello, max_buffer_bytes: int, changed: Callable[[], None]
    ) -> None:
        self.instance = instance
        self.address = address
        self._hello = hello
        self._max_buffer_bytes = max_buffer_bytes
        self._changed = changed
        self._streams = itertools.count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._frame = pb.RouterFrame()
        self._frame_bytes = 0
        self._flush = asyncio.Event()
        self.connected = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"session-{instance}")
        self._task.add_done_callback(self._died)

    def __len__(self) -> int:
        """Exchanges that have not ended."""
        return len(self._exchanges)

    def submit(self, submit: pb.Submit) -> Exchange:
        """Send a request; fills in its stream number."""
        # A whole answer is read as fast as it comes and bounded by its sink.
        bound = self._max_buffer_bytes if submit.streamed else math.inf
        exchange = Exchange(self, next(self._streams), bound)
        submit.stream = exchange.stream
        self._exchanges[exchange.stream] = exchange
        if not self.connected:
            exchange.feed(_lost(exchange.stream, self.instance))
            return exchange
        self._frame.submits.append(submit)
        self._flush.set()
        return exchange

    def cancel(self, stream: int) -> None:
        """Tell the worker that a request is not wanted any more."""
        if self._exchanges.pop(stream, None) is not None and self.connected:
            self._frame.cancels.append(stream)
            self._flush.set()

    def forget(self, stream: int) -> None:
        """An exchange has ended by itself."""
        self._exchanges.pop(stream, None)

    def lose(self) -> None:
        """Treat every exchange as lost, as when the worker's lease is gone though its socket is not."""
        for stream, exchange in list(self._exchanges.items()):
            if self.connected:
                self._frame.cancels.append(stream)
                self._flush.set()
            exchange.feed(_lost(stream, self.instance))

    async def close(self) -> None:
        """End the stream; exchanges still open are lost."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _died(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("session.died", extra={"instance": self.instance}, exc_info=task.exception())

    async def _run(self) -> None:
        backoff_s = 0.05
        while True:
            try:
                async with grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS) as channel:
                    await self._serve(channel)
                    backoff_s = 0.05
            except grpc.aio.AioRpcError as exc:
                log.info("session.lost", extra={"instance": self.instance, "code": exc.code().name})
            finally:
                self._disconnected()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _disconnected(self) -> None:
        was = self.connected
        self.connected = False
        self._frame = pb.RouterFrame()
        for stream, exchange in list(self._exchanges.items()):
            exchange.feed(_lost(stream, self.instance))
        if was:
            self._changed()

    async def _serve(self, channel: grpc.aio.Channel) -> None:
        """Open the stream and serve it until one of its directions ends."""
        call = WorkerDataStub(channel).Session()  # type: ignore[call-arg]  # frames are written below
        await call.write(pb.RouterFrame(hello=self._hello))
        # The worker answers Hello with an empty frame: the session works in both directions.
        if not isinstance(await call.read(), pb.WorkerFrame):
            return
        self.connected = True
        self._changed()
        log.info("session.connected", extra={"instance": self.instance})
        writer = asyncio.get_running_loop().create_task(self._write(call), name=f"write-{self.instance}")
        try:
            while isinstance(frame := await call.read(), pb.WorkerFrame):
                for event in frame.events:
                    exchange = self._exchanges.get(event.stream)
                    if exchange is not None:
                        exchange.feed(event)
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: "grpc.aio.StreamStreamCall[pb.RouterFrame, pb.WorkerFrame]") -> None:
        while True:
            await self._flush.wait()
            self._flush.clear()
            frame, self._frame = self._frame, pb.RouterFrame()
            for part in _split(frame):
                await call.write(part)


def _split(frame: pb.RouterFrame) -> Iterable[pb.RouterFrame]:
    """Frames of bounded size; one large request travels alone."""
    if len(frame.submits) <= 1 or frame.ByteSize() <= _MAX_FRAME_BYTES:
        return (frame,)
    parts = [pb.RouterFrame(submits=[submit]) for submit in frame.submits]
    parts.append(pb.RouterFrame(cancels=frame.cancels))
    return parts


def _lost(stream: int, instance: str) -> pb.Event:
    failed = pb.Failed(kind=pb.Failed.ENGINE_LOST, message=f"the connection to {instance} was lost")
    return pb.Event(stream=stream, failed=failed)


class Sessions:
    """A session to every live instance of the pool."""

    def __init__(self, router: str, pool: str, max_buffer_bytes: int, changed: Callable[[], None]) -> None:
        self._hello = pb.Hello(router=router, pool=pool)
        self._max_buffer_bytes = max_buffer_bytes
        self._changed = changed
        self._sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, instance: str) -> Session | None:
        """The session to an instance, connected or not."""
        return self._sessions.get(instance)

    @property
    def reachable(self) -> frozenset[str]:
        """Instances whose session is connected."""
        return frozenset(name for name, session in self._sessions.items() if session.connected)

    @property
    def exchanges(self) -> int:
        """Requests under way on all sessions."""
        return sum(len(session) for session in self._sessions.values())

    def follow(self, membership: Membership) -> None:
        """Open sessions to who came, close those to who left."""
        for name, member in membership.members.items():
            session = self._sessions.get(name)
            address = member.registration.grpc_address
            if session is not None and session.address != address:
                self._close(name)
                session = None
            if session is None:
                self._sessions[name] = Session(
                    name, address, self._hello, self._max_buffer_bytes, self._changed
                )
            elif not member.alive:
                session.lose()
        for name in [name for name in self._sessions if name not in membership.members]:
            self._close(name)

    def _close(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._sessions.pop(name).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End all sessions."""
        for name in list(self._sessions):
            self._close(name)
        await asyncio.gather(*self._closing, return_exceptions=True)
