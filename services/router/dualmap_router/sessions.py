"""gRPC sessions: one long-lived stream to each worker carries all requests of this router.

Frames batch: whatever is to be sent in one event-loop turn leaves together. The session hands each exchange its
events. When the session is lost, every exchange on it learns so, and the flight decides whether the request may start
elsewhere.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.message import DecodeError

from dualmap_router.exchange import Exchange
from dualmap_router.grpc_stream import GrpcStream
from dualmap_service.backoff import Backoff
from dualmap_service.grpc_access import GrpcAccess
from dualmap_service.registry import Membership
from dualmap_wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_SUBMITS = bytes((pb.RouterFrame.SUBMITS_FIELD_NUMBER << 3 | 2,))
"""The tag of a frame's submits: the field's number, and that a length follows."""
_METHOD = "/dualmap_wire.v1.WorkerData/Session"
_MAX_FRAME_BYTES = 1 << 20
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 2.0
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
        self._submits: list[bytes] = []
        self._cancels: list[int] = []
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
        self._submits.append(submit.SerializeToString())
        self._flush_soon()
        return exchange

    def cancel(self, stream: int) -> None:
        """Tell the worker that a request is not wanted any more."""
        if self._exchanges.pop(stream, None) is not None and self.connected:
            self._cancels.append(stream)
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
        backoff = Backoff(_FIRST_PAUSE_S, _MAX_PAUSE_S)
        while not self._retired:
            try:
                reason = await self._serve()
                backoff.reset()
            except (OSError, TimeoutError) as exc:
                reason = str(exc) or "no answer in time"
            finally:
                self._disconnected()
            log.info("session.lost", extra={"instance": self.instance, "reason": reason})
            await asyncio.sleep(backoff.next_s())

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
        self._submits, self._cancels = [], []
        for stream, exchange in list(self._exchanges.items()):
            exchange.feed(_lost(stream, self.instance))
            exchange.stir()
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
        fed: dict[int, Exchange] = {}
        for event in frame.events:
            stream = event.stream
            exchange = self._exchanges.get(stream)
            if exchange is not None:
                exchange.feed(event)
                fed[stream] = exchange
        # Each once: what a frame has for one stream leaves in one write.
        for exchange in fed.values():
            exchange.stir()

    def _flush_soon(self) -> None:
        """Whatever is to be sent in this turn of the loop leaves in one frame."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        submits, self._submits = self._submits, []
        cancels, self._cancels = self._cancels, []
        if self._stream is not None:
            for frame in _frames(submits, cancels):
                self._stream.send(frame)


def _frames(submits: Sequence[bytes], cancels: Sequence[int]) -> Iterator[bytes]:
    """Frames of bounded size; one large request travels alone.

    They are put together of bytes, since messages one behind the other are one message in protobuf: a submit that
    was added to a frame would be copied into it.
    """
    fields = [b"".join((_SUBMITS, _varint(len(submit)), submit)) for submit in submits]
    if cancels:
        fields.append(pb.RouterFrame(cancels=cancels).SerializeToString())
    if len(fields) > 1 and sum(map(len, fields)) <= _MAX_FRAME_BYTES:
        yield b"".join(fields)
    else:
        yield from fields


def _varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


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
