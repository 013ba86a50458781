"""A way from a ZeroMQ publisher to its subscribers that loses, doubles, delays or swaps messages."""

import asyncio
import contextlib
import random

import zmq

_TICK_S = 0.01
_MOST_WAITING = 10_000


class Relay:
    """Subscribes to everything at `source` and publishes it at `address`; chance is seeded."""

    def __init__(self, source: str, address: str, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._context = zmq.Context(io_threads=1)
        self._sub = self._socket(zmq.SUB)
        self._sub.set(zmq.SUBSCRIBE, b"")
        self._sub.set(zmq.RECONNECT_IVL, 50)
        self._sub.connect(source)
        self._pub = self._socket(zmq.PUB)
        self._pub.bind(address)
        self._waiting: list[list[bytes]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self.loses = 0.0
        """The share of messages that never arrive."""
        self.doubles = 0.0
        """The share that arrives twice."""
        self.late_s = 0.0
        """How long each is on its way."""
        self.swaps = False
        """Whether each second one arrives before the first."""
        self.num_passed = 0
        self.num_spoilt = 0
        self._task = asyncio.create_task(self._run())

    def mend(self) -> None:
        """Pass everything on, once and in order."""
        self.loses = self.doubles = self.late_s = 0.0
        self.swaps = False

    async def close(self) -> None:
        """Close for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for timer in self._timers:
            timer.cancel()
        self._sub.close(0)
        self._pub.close(0)
        self._context.term()

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, _MOST_WAITING)
        socket.set(zmq.SNDHWM, _MOST_WAITING)
        return socket

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            with contextlib.suppress(zmq.Again):
                while True:
                    self._take(self._sub.recv_multipart(zmq.NOBLOCK))

    def _take(self, message: list[bytes]) -> None:
        spoilt_before = self.num_spoilt
        if self.loses and self._rng.random() < self.loses:
            self.num_spoilt += 1
            return
        messages = [message]
        if self.doubles and self._rng.random() < self.doubles:
            messages.append(message)
            self.num_spoilt += 1
        if self.swaps or self._waiting:
            self._waiting += messages
            if self.swaps and len(self._waiting) < 2:
                return
            messages, self._waiting = self._waiting[::-1], []
            self.num_spoilt += 1
        if self.late_s:
            self.num_spoilt += 1
            self._later(messages)
        else:
            self._send(messages)
        self.num_passed += self.num_spoilt == spoilt_before

    def _later(self, messages: list[list[bytes]]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            self._send(messages)

        timer = asyncio.get_running_loop().call_later(self.late_s, due)
        self._timers.add(timer)

    def _send(self, messages: list[list[bytes]]) -> None:
        for message in messages:
            with contextlib.suppress(zmq.Again):
                self._pub.send_multipart(message, zmq.NOBLOCK)
