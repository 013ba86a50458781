"""Stand-ins for what a router is connected to: transports that are no sockets, and count the time they take."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from dualmap_wire.v1 import worker_pb2 as pb

_BIG = 2**31 - 1


class Peer:
    """A transport whose other end is here; what is said to it is answered in the next turn of the loop."""

    spent_s = 0.0
    """CPU seconds of all stand-ins."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        """The router writes."""
        begin_s = time.thread_time()
        answer = self.hear(bytes(data))
        if answer:
            self._loop.call_soon(self.protocol.data_received, answer)
        Peer.spent_s += time.thread_time() - begin_s

    def hear(self, data: bytes) -> bytes:
        """What to answer."""
        raise NotImplementedError

    def is_closing(self) -> bool:
        """Never."""
        return False

    def is_reading(self) -> bool:
        """Always."""
        return True

    def set_write_buffer_limits(self, high: int) -> None:
        """No buffer."""

    def pause_reading(self) -> None:
        """Nothing to pause."""

    def abort(self) -> None:
        """Nothing to close."""

    def close(self) -> None:
        """Nothing to close."""


class Client(Peer):
    """A client that waits for whole answers; of streams it just takes the chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = False

    def receive(self, request: bytes) -> None:
        """The router receives this."""
        self.waits = True
        self._loop.call_soon(self.protocol.data_received, request)

    def hear(self, data: bytes) -> bytes:
        """An answer."""
        self.waits = False
        return b""


class Redis(Peer):
    """Answers `route` with the first of the instances by turns, and everything else with 1."""

    def __init__(self, instances: Sequence[str]) -> None:
        super().__init__()
        self._instances = instances
        self._turn = 0
        self.transport = self
        self._writer = self

    def set_protocol(self, protocol: Any) -> None:
        """The pipeline takes over."""
        self.protocol = protocol

    def hear(self, data: bytes) -> bytes:
        """One reply for each command."""
        # Commands begin with an array of at least five parts, whose first is FCALL.
        calls = data.split(b"\r\nFCALL\r\n")[1:]
        return b"".join(self._route() if b"\r\nroute_" in call[:32] else b":1\r\n" for call in calls)

    def _route(self) -> bytes:
        self._turn += 1
        first = self._instances[self._turn % 2].encode()
        second = self._instances[(self._turn + 1) % 2].encode()
        weighed = b"".join(
            b"*4\r\n$%d\r\n%b\r\n:0\r\n:1500\r\n:20000\r\n" % (len(name), name) for name in (first, second)
        )
        return (
            b"*12\r\n$2\r\nok\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$4\r\nload\r\n:1\r\n:0\r\n:0\r\n:1500\r\n:20000\r\n:21500\r\n"
            b"*2\r\n%b:1795717220211038\r\n" % (len(first), first, len(second), second, weighed)
        )


class Worker(Peer):
    """Answers each submit in one frame; of a stream it sends the head and a first chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[int] = []
        self._heard = b""
        self._message = b""
        self._head = [
            pb.Header(name="content-type", value="application/json"),
            pb.Header(name="x-served-by", value="stand-in"),
        ]

    def hear(self, data: bytes) -> bytes:
        """HTTP/2 frames of one gRPC call."""
        self._heard += data
        answer = b""
        if self._heard.startswith(b"PRI * HTTP/2.0"):
            self._heard = self._heard[24:]
            answer += _frame(4, b"\x00\x04" + _BIG.to_bytes(4, "big"))
            answer += _frame(8, (_BIG - 65535).to_bytes(4, "big"))
        while len(self._heard) >= 9:
            length = int.from_bytes(self._heard[:3], "big")
            if len(self._heard) < 9 + length:
                break
            kind, payload = self._heard[3], self._heard[9 : 9 + length]
            self._heard = self._heard[9 + length :]
            if kind == 0:
                self._message += payload
                answer += self._messages()
        return answer

    def _messages(self) -> bytes:
        answer = b""
        while len(self._message) >= 5:
            end = 5 + int.from_bytes(self._message[1:5], "big")
            if len(self._message) < end:
                break
            frame = pb.RouterFrame.FromString(self._message[5:end])
            self._message = self._message[end:]
            if frame.HasField("hello"):
                answer += _message(pb.WorkerFrame())
            events = [event for submit in frame.submits for event in self._events(submit)]
            if events:
                answer += _message(pb.WorkerFrame(events=events))
        return answer

    def _events(self, submit: pb.Submit) -> list[pb.Event]:
        head = pb.Head(status=200, headers=self._head, queued_s=0.001, prefill_s=0.02)
        begin = [
            pb.Event(stream=submit.stream, head=head),
            pb.Event(stream=submit.stream, data=_chunk(0) if submit.streamed else _WHOLE),
        ]
        if submit.streamed:
            self.streams.append(submit.stream)
            return begin
        end = pb.End(prompt_tokens=submit.placement.prompt_tokens, cached_tokens=0, output_tokens=1)
        return [*begin, pb.Event(stream=submit.stream, end=end)]

    def chunks(self, streams: Sequence[int]) -> bytes:
        """A frame with a chunk for each of these streams."""
        return _message(pb.WorkerFrame(events=[pb.Event(stream=s, data=_chunk(s)) for s in streams]))

    def answer(self, frame: bytes) -> None:
        """The router receives this."""
        self._loop.call_soon(self.protocol.data_received, frame)


def _chunk(number: int) -> bytes:
    content = {"choices": [{"index": 0, "delta": {"content": f"word {number}"}, "finish_reason": None}]}
    return (
        b"data: "
        + msgspec.json.encode({"id": "chatcmpl-1", "object": "chat.completion.chunk", **content})
        + b"\n\n"
    )


_WHOLE = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word"}}],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 1},
    }
)


def _frame(kind: int, payload: bytes, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + payload


def _message(message: pb.WorkerFrame) -> bytes:
    data = message.SerializeToString()
    return _frame(0, b"\x00" + len(data).to_bytes(4, "big") + data, 1)
