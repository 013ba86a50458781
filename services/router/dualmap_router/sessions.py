"""gRPC sessions: one long-lived stream to each worker carries all requests of this router.

Frames batch: whatever is to be sent in one event-loop turn leaves together. The session hands each exchange its
events. When the session is lost, every exchange on it learns so, and the flight decides whether the request may start
elsewhere.
"""

import asyncio
import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError

from dualmap_router.exchange import Exchange
from dualmap_router.grpc_stream import GrpcStream
from dualmap_service.grpc_access import GrpcAccess
from dualmap_service.registry import Membership
from dualmap_wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_METHOD = "/dualmap_wire.v1.WorkerData/Session"
_MAX_FRAME_BYTES = 1 << 20
_MAX_BACKOFF_S = 2.0
_CONNECT_S = 5.0
_KEEPALIVE_S = 2.0


class Session:
    """The stream to one worker, connected again until closed."""

    def __init__(
        self,
        instance: str,
        address: str,
        hello: pb.Hello,
        max_buffer_bytes: int,
        changed: Callable[[], None],
        access: GrpcAccess,
    ) -> None:
        self.instance = instance
        self.address = address
        self._access = access
        self._hello = hello
        self._max_buffer_bytes = max_buffer_bytes
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._streams = itertools.count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._frame = pb.RouterFrame()
        self._flushing = False
        self._stream: GrpcStream | None = None
        self._answered: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._retired = False
        self.connected = False
        self._task = self._loop.create_task(self._run(), name=f"session-{instance}")
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
        self._flush_soon()
        return exchange

    def cancel(self, stream: int) -> None:
        """Tell the worker that a request is not wanted any more."""
        if self._exchanges.pop(stream, None) is not None and self.connected:
            self._frame.cancels.append(stream)
            self._flush_soon()
        self._close_if_done()

    def forget(self, stream: int) -> None:
        """An exchange has ended by itself."""
        self._exchanges.pop(stream, None)
        self._close_if_done()

    def retire(self) -> None:
        """The instance has left the registry: let what runs on it finish, then close.

        A worker that only lost its store still answers; one that is dead is found out by its silence.
        """
        self._retired = True
        self._close_if_done()

    async def close(self) -> None:
        """End the stream; exchanges still open are lost."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _close_if_done(self) -> None:
        if self._retired and not self._exchanges:
            self._task.cancel()

    def _died(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("session.died", extra={"instance": self.instance}, exc_info=task.exception())

    # The connection

    async def _run(self) -> None:
        backoff_s = 0.05
        while not self._retired:
            try:
                reason = await self._serve()
                backoff_s = 0.05
            except (OSError, TimeoutError) as exc:
                reason = str(exc) or "no answer in time"
            finally:
                self._disconnected()
            log.info("session.lost", extra={"instance": self.instance, "reason": reason})
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _serve(self) -> str:
        """Connect and serve until the stream ends; returns why."""
        self._answered = self._loop.create_future()
        self._ended = self._loop.create_future()
        host, _, port = self.address.rpartition(":")
        host = host.strip("[]")
        context, name = self._access.context(), self._access.name_of(host)
        stream = GrpcStream(
            _METHOD, self.address, self._take, self._stream_ended, _KEEPALIVE_S, context is not None
        )
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(
                    lambda: stream, host, int(port), ssl=context, server_hostname=name
                )
                stream.send(pb.RouterFrame(hello=self._hello).SerializeToString())
                # The worker answers hello with an empty frame: the session works in both directions.
                await asyncio.wait((self._answered, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if not self._answered.done():
                # TLS 1.3 refuses a client's certificate behind the handshake, and uvloop swallows the alert.
                hint = "" if context is None else ": does it accept this router's certificate?"
                raise ConnectionError(f"{await self._ended} before the worker said hello{hint}")
            self._stream, self.connected = stream, True
            self._changed()
            log.info("session.connected", extra={"instance": self.instance})
            return await self._ended
        finally:
            stream.close()

    def _stream_ended(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    def _disconnected(self) -> None:
        was, self.connected, self._stream = self.connected, False, None
        self._frame = pb.RouterFrame()
        for stream, exchange in list(self._exchanges.items()):
            exchange.feed(_lost(stream, self.instance))
        if was:
            self._changed()

    # Frames

    def _take(self, message: bytes) -> None:
        """A frame of the worker."""
        try:
            frame = pb.WorkerFrame.FromString(message)
        except DecodeError:
            self._stream_ended("the worker sent no frame")
            return
        if not self._answered.done():
            self._answered.set_result(None)
        for event in frame.events:
            exchange = self._exchanges.get(event.stream)
            if exchange is not None:
                exchange.feed(event)

    def _flush_soon(self) -> None:
        """Whatever is to be sent in this turn of the loop leaves in one frame."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        frame, self._frame = self._frame, pb.RouterFrame()
        if self._stream is not None:
            for part in _split(frame):
                self._stream.send(part.SerializeToString())


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

    def __init__(
        self, router: str, pool: str, max_buffer_bytes: int, changed: Callable[[], None], access: GrpcAccess
    ) -> None:
        self._access = access
        self._hello = pb.Hello(router=router, pool=pool)
        self._max_buffer_bytes = max_buffer_bytes
        self._changed = changed
        self._sessions: dict[str, Session] = {}
        self._retiring: list[Session] = []

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
        return sum(len(session) for session in (*self._sessions.values(), *self._retiring))

    def follow(self, membership: Membership) -> None:
        """Open sessions to who came, retire those to who left."""
        for name, member in membership.members.items():
            session = self._sessions.get(name)
            address = member.registration.grpc_address
            if session is not None and session.address != address:
                self._retire(name)
                session = None
            if session is None:
                self._sessions[name] = Session(
                    name, address, self._hello, self._max_buffer_bytes, self._changed, self._access
                )
        for name in [name for name in self._sessions if name not in membership.members]:
            self._retire(name)

    def _retire(self, name: str) -> None:
        session = self._sessions.pop(name)
        self._retiring = [old for old in self._retiring if len(old)]
        self._retiring.append(session)
        session.retire()

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(session.close() for session in (*self._sessions.values(), *self._retiring)))
