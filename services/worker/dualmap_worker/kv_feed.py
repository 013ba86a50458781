"""The feed of an engine's KV cache events: nothing twice, nothing out of order, nothing missed without being known.

vLLM numbers its batches and keeps the latest ones for replay. A gap is filled from there. A replay from the last batch
that was followed is also asked for every few seconds: it brings what was lost at the very end, and tells an engine
that began anew, whose batch of that number is another one or has not come yet.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from dualmap_worker.errors import KvEventError
from dualmap_worker.kv_wire import KvEvent, decode_batch

log = logging.getLogger(__name__)

_TICK_S = 0.01
_CHECK_S = 2.0
_AGAIN_S = 0.1
_REPLAY_S = 2.0
_MOST_UNANSWERED = 3
_MAX_BATCHES_A_TICK = 200
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_HELD_BACK = 20_000
_END = (-1).to_bytes(8, "big", signed=True)

Batch = tuple[int, bytes]
"""(sequence number, payload)."""


class KvFeed:
    """Follows one engine. `follow` gets events in order, `missed` and `restarted` say what else happened."""

    def __init__(
        self,
        url: str,
        replay_url: str,
        follow: Callable[[Sequence[KvEvent]], None],
        missed: Callable[[], None],
        restarted: Callable[[], None],
    ) -> None:
        self._url = url
        self._replay_url = replay_url
        self._follow = follow
        self._missed = missed
        self._restarted = restarted
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._live: zmq.Socket[bytes] | None = None
        self._replay: zmq.Socket[bytes] | None = None
        self._last = -1
        self._last_digest = b""
        self._held_back: deque[Batch] = deque(maxlen=_MAX_HELD_BACK)
        self._replayed: list[Batch] = []
        self._asked_from: int | None = None
        self._asked_s = 0.0
        self._next_check_s = 0.0
        self._unanswered = 0
        self.num_lost = 0
        """Times that batches were missing and could not be had again."""

    async def run(self) -> None:
        """Follow for ever."""
        self._open()
        loop = asyncio.get_running_loop()
        while True:
            self.step(loop.time())
            await asyncio.sleep(_TICK_S)

    def close(self) -> None:
        """Close the sockets."""
        for socket in (self._live, self._replay):
            if socket is not None:
                socket.close(0)
        if self._context is not None:
            self._context.term()
        self._context = self._live = self._replay = None

    def _open(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._live = self._context.socket(zmq.SUB)
        self._live.setsockopt(zmq.SUBSCRIBE, b"")
        self._prepare(self._live, self._url)
        if self._replay_url:
            self._open_replay()

    def _open_replay(self) -> None:
        """A new one forgets whatever answer the last one still waited for."""
        assert self._context is not None
        if self._replay is not None:
            self._replay.close(0)
        self._replay = self._context.socket(zmq.DEALER)
        self._prepare(self._replay, self._replay_url)

    @staticmethod
    def _prepare(socket: "zmq.Socket[bytes]", url: str) -> None:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 100_000)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.connect(url)

    def check_soon(self) -> None:
        """The engine may have begun anew: ask now."""
        self._next_check_s = 0.0

    def step(self, now_s: float) -> None:
        """Take what has come; ask for what is missing."""
        self._take_replay(now_s)
        for _ in range(_MAX_BATCHES_A_TICK):
            batch = self._receive_live()
            if batch is None:
                break
            self._take(batch, now_s)
        if self._asked_from is None and self._replay is not None and now_s >= self._next_check_s:
            self._ask(now_s)

    # What comes by itself

    def _receive_live(self) -> Batch | None:
        assert self._live is not None
        try:
            frames = self._live.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        if len(frames) != 3 or len(frames[1]) != 8:
            log.warning("kv_events.bad_message", extra={"frames": len(frames)})
            return None
        return int.from_bytes(frames[1], "big"), frames[2]

    def _take(self, batch: Batch, now_s: float) -> None:
        """Follow a batch, or hold it back while the ones before it are asked for."""
        sequence = batch[0]
        if self._asked_from is not None:
            self._held_back.append(batch)
        elif sequence == self._last + 1:
            self._accept(batch)
        elif self._replay is None:
            self._go_on_from(batch)
        elif sequence > self._last:
            self._held_back.append(batch)
            self._ask(now_s)
        else:
            # Replayed already, or of an engine that began anew: its replay will tell.
            self._next_check_s = min(self._next_check_s, now_s + _AGAIN_S)

    def _go_on_from(self, batch: Batch) -> None:
        """Nothing can be had again: what was missed is missed."""
        if batch[0] == self._last and _digest(batch[1]) == self._last_digest:
            return
        if batch[0] <= self._last:
            self._begin_anew()
        if batch[0] != self._last + 1:
            self._lose()
        self._accept(batch)

    # Replay

    def _ask(self, now_s: float) -> None:
        assert self._replay is not None
        self._asked_from, self._asked_s = max(self._last, 0), now_s
        self._replayed.clear()
        try:
            self._replay.send_multipart([b"", self._asked_from.to_bytes(8, "big")], zmq.NOBLOCK)
        except zmq.Again:
            log.debug("kv_events.replay_not_asked")

    def _take_replay(self, now_s: float) -> None:
        """Collect an answer; one that does not come is asked for again later."""
        while self._asked_from is not None and self._replay is not None:
            try:
                frames = self._replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if now_s - self._asked_s > _REPLAY_S:
                    self._give_up(now_s)
                return
            # Older releases leave the topic out.
            if len(frames) not in (3, 4) or len(frames[-2]) != 8:
                continue
            if frames[-2] != _END:
                self._asked_s = now_s
                self._replayed.append((int.from_bytes(frames[-2], "big"), frames[-1]))
                continue
            self._replay_done(now_s)

    def _give_up(self, now_s: float) -> None:
        """No answer: an engine that is gone, or hangs, or replays nothing. What came meanwhile waits a few tries."""
        self._asked_from, self._next_check_s = None, now_s + _CHECK_S
        self._replayed.clear()
        self._open_replay()
        self._unanswered += 1
        if self._unanswered >= _MOST_UNANSWERED and self._held_back:
            log.warning("kv_events.no_replay", extra={"replay_url": self._replay_url})
            held_back, self._held_back = self._held_back, deque(maxlen=_MAX_HELD_BACK)
            for batch in held_back:
                self._go_on_from(batch)

    def _replay_done(self, now_s: float) -> None:
        replayed, self._replayed = self._replayed, []
        self._unanswered = 0
        self._asked_from, self._next_check_s = None, now_s + _CHECK_S
        if self._last >= 0:
            first = replayed[0] if replayed else None
            if first is None or (first[0] == self._last and _digest(first[1]) != self._last_digest):
                self._begin_anew()
                self._ask(now_s)
                return
            if first[0] == self._last:
                del replayed[0]
        if replayed and replayed[0][0] > self._last + 1:
            self._lose()
        for batch in replayed:
            self._accept(batch)
        held_back, self._held_back = self._held_back, deque(maxlen=_MAX_HELD_BACK)
        for batch in held_back:
            if batch[0] > self._last or self._asked_from is not None:
                self._take(batch, now_s)

    # What is known

    def _accept(self, batch: Batch) -> None:
        self._last, self._last_digest = batch[0], _digest(batch[1])
        try:
            events = decode_batch(batch[1])
        except KvEventError as exc:
            log.warning("kv_events.bad_batch", extra={"sequence": batch[0], "error": str(exc)})
            self._lose()
            return
        self._follow(events)

    def _lose(self) -> None:
        self.num_lost += 1
        log.warning("kv_events.lost", extra={"after": self._last})
        self._missed()

    def _begin_anew(self) -> None:
        log.info("kv_events.engine_restarted", extra={"after": self._last})
        self._last, self._last_digest = -1, b""
        self._restarted()


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=8).digest()
