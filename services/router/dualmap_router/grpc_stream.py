"""One bidirectional gRPC call on an HTTP/2 connection of its own, as an asyncio protocol.

Theory of operation. A session is a single stream for the life of its connection, so of HTTP/2 (RFC 9113) only this
is needed: the preface, one request head, DATA both ways within the flow-control windows, and answers to SETTINGS and
PING. gRPC on top is five bytes before each message: a flag for compression, which is never asked for, and the
length. grpcio's asyncio client does the same through a completion queue and a second thread, which costs a wake-up
per read and per write (docs/decisions/0009). The other end is an ordinary grpcio server; hpack reads its heads.

Whatever breaks a rule ends the stream: `on_end` is called once, with a reason, and the owner connects again.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from hpack import Decoder, Encoder, HPACKError

from dualmap_router import http2
from dualmap_router.http2 import BrokenError, frame

_STREAM = 1
_WINDOW_BYTES = 16 * 1024 * 1024
"""What the other end may send ahead; messages are taken as they come, so it is topped up at once."""
_TOP_UP_BYTES = _WINDOW_BYTES // 4


class GrpcStream(asyncio.Protocol):
    """The client's end of one call. Made for a connection that is about to be made."""

    def __init__(
        self,
        method: str,
        authority: str,
        on_message: Callable[[bytes], None],
        on_end: Callable[[str], None],
        keepalive_s: float,
        encrypted: bool = False,
    ) -> None:
        """`method` is `/package.Service/Method`; silence for 1.5 to 2.5 times `keepalive_s` ends the stream."""
        self._method = method
        self._authority = authority
        self._scheme = "https" if encrypted else "http"
        self._on_message = on_message
        self._on_end = on_end
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._ended = False
        # In
        self._partial = b""
        self._decoder = Decoder()
        self._head: bytearray | None = None
        self._head_ends_stream = False
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._consumed_bytes = 0
        self._heard = True
        self._misses = 0
        # Out
        self._waiting: deque[memoryview] = deque()
        self._max_frame_bytes = http2.MAX_FRAME_BYTES
        self._connection_window = http2.DEFAULT_WINDOW_BYTES
        self._stream_window = http2.DEFAULT_WINDOW_BYTES
        self._initial_window = http2.DEFAULT_WINDOW_BYTES

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the call."""
        # uvloop's transports have asyncio's methods, not its base class.
        transport = self._transport = cast(asyncio.Transport, transport)
        head = Encoder().encode(
            [
                (":method", "POST"),
                (":scheme", self._scheme),
                (":path", self._method),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "dualmap"),
            ]
        )
        settings = http2.settings({http2.ENABLE_PUSH: 0, http2.INITIAL_WINDOW_SIZE: _WINDOW_BYTES})
        more = (_WINDOW_BYTES - http2.DEFAULT_WINDOW_BYTES).to_bytes(4, "big")
        transport.write(
            http2.PREFACE
            + frame(http2.SETTINGS, 0, 0, settings)
            + frame(http2.WINDOW_UPDATE, 0, 0, more)
            + frame(http2.HEADERS, http2.END_HEADERS, _STREAM, head)
        )
        self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end("the connection was lost" if exc is None else f"the connection was lost: {exc}")

    def data_received(self, data: bytes) -> None:
        """Bytes of the other end."""
        self._heard = True
        if self._partial:
            data = self._partial + data
        start, size = 0, len(data)
        try:
            while size - start >= 9:
                high, low, kind, flags, stream = http2.read_head(data, start)
                end = start + 9 + (high << 16 | low)
                if end - start > 9 + http2.MAX_FRAME_BYTES:
                    raise BrokenError("a frame is larger than was agreed")
                if end > size:
                    break
                self._take(kind, flags, stream & 0x7FFFFFFF, data[start + 9 : end])
                start = end
        except BrokenError as exc:
            self._end(str(exc))
            return
        self._partial = data[start:]

    # Frames in

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._head is not None and kind != http2.CONTINUATION:
            raise BrokenError("a head was interrupted")
        if kind == http2.DATA:
            self._data(flags, payload)
        elif kind == http2.WINDOW_UPDATE:
            self._window_update(stream, payload)
        elif kind == http2.PING:
            if len(payload) != 8:
                raise BrokenError("a ping without its eight bytes")
            if not flags & http2.ACK:
                self._write(frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._settings(payload)
        elif kind == http2.HEADERS:
            self._head, self._head_ends_stream = bytearray(), bool(flags & http2.END_STREAM)
            self._more_head(flags, http2.unpadded(flags, payload)[5 if flags & http2.PRIORITY else 0 :])
        elif kind == http2.CONTINUATION:
            if self._head is None:
                raise BrokenError("a head continues that did not begin")
            self._more_head(flags, payload)
        elif kind == http2.RST_STREAM:
            raise BrokenError(f"the stream was reset with code {int.from_bytes(payload[:4], 'big')}")
        elif kind == http2.GOAWAY:
            last, code = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
            # A server that stops lets a stream that it has seen go on.
            if code != 0 or last & 0x7FFFFFFF < _STREAM:
                raise BrokenError(f"the server went away with code {code}")
        elif kind == http2.PUSH_PROMISE:
            raise BrokenError("a push that nobody allowed")

    def _data(self, flags: int, payload: bytes) -> None:
        self._consumed_bytes += len(payload)
        if self._consumed_bytes >= _TOP_UP_BYTES:
            more, self._consumed_bytes = self._consumed_bytes.to_bytes(4, "big"), 0
            self._write(frame(http2.WINDOW_UPDATE, 0, 0, more) + frame(http2.WINDOW_UPDATE, 0, _STREAM, more))
        content = http2.unpadded(flags, payload) if flags & http2.PADDED else payload
        # The usual case: one frame, one message.
        if not self._parts and len(content) >= 5 and http2.message_bytes(content) == len(content) - 5:
            self._on_message(content[5:])
        elif content:
            self._parts.append(content)
            self._parts_bytes += len(content)
            self._join_messages()
        if flags & http2.END_STREAM:
            raise BrokenError("the server ended the stream")

    def _join_messages(self) -> None:
        """Hand on the messages that the parts so far complete."""
        if self._parts_bytes < 5:
            return
        first = self._parts[0] if len(self._parts[0]) >= 5 else b"".join(self._parts)
        if self._parts_bytes < 5 + http2.message_bytes(first):
            return
        data = b"".join(self._parts)
        start = 0
        while len(data) - start >= 5:
            end = start + 5 + http2.message_bytes(data[start : start + 5])
            if end > len(data):
                break
            self._on_message(data[start + 5 : end])
            start = end
        self._parts = [data[start:]] if start < len(data) else []
        self._parts_bytes = len(data) - start

    def _window_update(self, stream: int, payload: bytes) -> None:
        more = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        if stream == 0:
            self._connection_window += more
        elif stream == _STREAM:
            self._stream_window += more
        if max(self._connection_window, self._stream_window) > http2.MAX_WINDOW_BYTES:
            raise BrokenError("a window grew beyond what there is")
        if self._waiting:
            self._pump()

    def _settings(self, payload: bytes) -> None:
        for key, value in http2.settings_in(payload):
            if key == http2.INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif key == http2.MAX_FRAME_SIZE:
                self._max_frame_bytes = value
        self._write(frame(http2.SETTINGS, http2.ACK, 0))
        self._pump()

    def _more_head(self, flags: int, block: bytes) -> None:
        assert self._head is not None
        self._head += block
        if len(self._head) > http2.MAX_HEAD_BYTES:
            raise BrokenError("a head that is too large")
        if not flags & http2.END_HEADERS:
            return
        try:
            headers = dict(self._decoder.decode(bytes(self._head), raw=True))
        except HPACKError as exc:
            raise BrokenError(f"a head that cannot be read: {exc}") from exc
        self._head = None
        status, code = headers.get(b":status", b"200"), headers.get(b"grpc-status", b"0")
        if status != b"200" or code != b"0" or self._head_ends_stream:
            said = b"HTTP %b, gRPC status %b %b" % (status, code, headers.get(b"grpc-message", b""))
            raise BrokenError(f"the call ended with {said.decode(errors='replace').rstrip()}")

    # Frames out

    def send(self, message: bytes) -> None:
        """Send a message; what no window has room for waits here."""
        if self._ended:
            return
        size = len(message) + 5
        prefix = len(message).to_bytes(5, "big")  # the first byte: not compressed
        room = min(self._connection_window, self._stream_window, self._max_frame_bytes)
        if self._waiting or size > room:
            self._waiting.append(memoryview(prefix + message))
            self._pump()
            return
        self._connection_window -= size
        self._stream_window -= size
        self._write(frame(http2.DATA, 0, _STREAM, prefix, message))

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the other end has not made room for yet."""
        return sum(len(data) for data in self._waiting)

    def _pump(self) -> None:
        while self._waiting:
            room = min(self._connection_window, self._stream_window, self._max_frame_bytes)
            if room <= 0:
                return
            data = self._waiting[0]
            piece = data[:room]
            if len(piece) == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = data[room:]
            self._connection_window -= len(piece)
            self._stream_window -= len(piece)
            self._write(frame(http2.DATA, 0, _STREAM, piece))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _keep_alive(self) -> None:
        """Ask for a sign of life; hang up on an end that gave none, though asked twice."""
        wait_s = self._keepalive_s
        if self._heard:
            self._misses = 0
        else:
            # Once proves nothing: after a pause of this process its timers come before what waits in its sockets.
            self._misses += 1
            wait_s /= 2
        if self._misses == 2:
            self._end("the other end gives no sign of life")
            return
        self._heard = False
        self._write(frame(http2.PING, 0, 0, b"dualmap\x00"))
        self._timer = self._loop.call_later(wait_s, self._keep_alive)

    # The end

    def close(self) -> None:
        """End the call."""
        self._end("closed")

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._waiting.clear()
        self._parts.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._on_end(reason)
