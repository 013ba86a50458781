"""What the instances say: one ZeroMQ subscription each, read on a tick, the newest report of each kept.

A tick with non-blocking reads costs half of what an event per message does. Each instance has its own
socket, so that one that floods or babbles delays nobody and is known by name. Everything is bounded: the
sockets' queues, the messages read per tick, a message's size, and one report kept per instance.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial

import zmq

from dualmap.ttft import believed_speeds
from dualmap.types import PrefillSpeed
from dualmap_rebalancer.metrics import Metrics
from dualmap_service.curve import Listener
from dualmap_service.registry import Membership
from dualmap_wire.errors import WireError
from dualmap_wire.telemetry import QUEUE_TOPIC, QueueReport, decode_report

log = logging.getLogger(__name__)

_HIGH_WATER = 256
_PER_TICK = 64
_MAX_MESSAGE_BYTES = 16 << 20
_MAX_SOCKETS = 16384
_GARBAGE_LOG_S = 1.0
_MAX_NUMBER = 1e9
"""More seconds than a process lives: such a report is wrong."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest report of an instance."""

    report: QueueReport
    seq: int
    received_s: float
    """On this process's monotonic clock."""
    turn: int
    """Grows with every report taken, whatever its instance and generation."""


class Telemetry:
    """Subscriptions to the pool's instances, and what was heard last."""

    def __init__(self, pool: str, metrics: Metrics, access: Listener) -> None:
        self._pool = pool
        self._access = access
        self._metrics = metrics
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._sockets: dict[str, tuple[str, zmq.Socket[bytes]]] = {}
        self._names: dict[zmq.Socket[bytes], str] = {}
        # One call asks all sockets: half a microsecond each, a fifth of trying to read them.
        self._poller = zmq.Poller()
        self._logged_s: dict[str, float] = {}
        self._followed_s: dict[str, float] = {}
        self._turn = 0
        self.heard: dict[str, Heard] = {}

    def speeds(self) -> dict[str, PrefillSpeed]:
        """What to expect of each instance; those that have prefilled little are taken for typical ones."""
        return believed_speeds(
            {
                name: (heard.report.prefill_speed, heard.report.fit_samples)
                for name, heard in self.heard.items()
            }
        )

    def follow(self, membership: Membership) -> None:
        """Subscribe to who came, unsubscribe from who left; a new address is both."""
        wanted = {name: m.registration.telemetry_address for name, m in membership.members.items()}
        for name in list(self._sockets):
            if self._sockets[name][0] != wanted.get(name):
                self._disconnect(name)
        for name in self._followed_s.keys() - wanted.keys():
            del self._followed_s[name]
            self.heard.pop(name, None)
            self._logged_s.pop(name, None)
            self._metrics.forget(name)
        for name, address in wanted.items():
            if name not in self._followed_s:
                self._followed_s[name] = time.monotonic()
                self._metrics.look(
                    name, partial(self.age_s, name), partial(self._work_s, name), partial(self._queued, name)
                )
            if name not in self._sockets:
                self._connect(name, address)

    def age_s(self, name: str) -> float:
        """Seconds since an instance was heard; one that never was, since it was followed."""
        heard = self.heard.get(name)
        since_s = self._followed_s.get(name, math.inf) if heard is None else heard.received_s
        return max(time.monotonic() - since_s, 0.0)

    def _work_s(self, name: str) -> float:
        heard = self.heard.get(name)
        return 0.0 if heard is None else heard.report.busy_s + sum(q.own_s for q in heard.report.queued)

    def _queued(self, name: str) -> int:
        heard = self.heard.get(name)
        return 0 if heard is None else heard.report.queued_total

    def drain(self) -> None:
        """Read what has arrived, up to a bound per instance."""
        for socket, _ in self._poller.poll(0):
            name = self._names[socket]
            for _ in range(_PER_TICK):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(name, frames)

    def close(self) -> None:
        """Close the sockets."""
        for name in list(self._sockets):
            self._disconnect(name)
        self._context.term()

    def _disconnect(self, name: str) -> None:
        _, socket = self._sockets.pop(name)
        self._poller.unregister(socket)
        del self._names[socket]
        socket.close(linger=0)

    def _connect(self, name: str, address: str) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, _HIGH_WATER)
        socket.set(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        socket.set(zmq.IPV6, 1)
        socket.set(zmq.RECONNECT_IVL, 100)
        socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        # A host that vanished says no goodbye.
        socket.set(zmq.HEARTBEAT_IVL, 1000)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.set(zmq.SUBSCRIBE, QUEUE_TOPIC)
        self._access.introduce(socket)
        try:
            socket.connect(address)
        except zmq.ZMQError as exc:
            socket.close(linger=0)
            log.warning(
                "telemetry.bad_address", extra={"instance": name, "address": address, "error": str(exc)}
            )
            return
        self._sockets[name] = (address, socket)
        self._names[socket] = name
        self._poller.register(socket, zmq.POLLIN)

    def _take(self, name: str, frames: list[bytes]) -> None:
        """Keep a report; count what it shows of losses and restarts."""
        try:
            seq, report = self._read(name, frames)
        except WireError as exc:
            self._garbage(name, exc)
            return
        last = self.heard.get(name)
        if last is not None:
            if report.generation != last.report.generation or seq <= last.seq:
                self._metrics.restarts.inc()
                log.info("telemetry.restart", extra={"instance": name, "generation": report.generation})
            elif seq > last.seq + 1:
                self._metrics.gaps.inc(seq - last.seq - 1)
        self._metrics.reported(report)
        self._metrics.preemptions.labels(name).inc(_more_preemptions(report, last))
        self._turn += 1
        self.heard[name] = Heard(report, seq, time.monotonic(), self._turn)

    def _read(self, name: str, frames: list[bytes]) -> tuple[int, QueueReport]:
        if len(frames) != 3 or frames[0] != QUEUE_TOPIC or len(frames[1]) != 8:
            raise WireError(f"not [topic, sequence, report]: frames of {[len(f) for f in frames][:8]} bytes")
        report = decode_report(frames[2])
        if (report.instance, report.pool) != (name, self._pool):
            raise WireError(f"from instance {report.instance!r:.80} of pool {report.pool!r:.80}")
        _check_numbers(report)
        return int.from_bytes(frames[1], "big"), report

    def _garbage(self, name: str, error: WireError) -> None:
        self._metrics.garbage.inc()
        now_s = time.monotonic()
        if now_s - self._logged_s.get(name, -math.inf) >= _GARBAGE_LOG_S:
            self._logged_s[name] = now_s
            log.warning("telemetry.garbage", extra={"instance": name, "error": str(error)[:200]})


def _more_preemptions(report: QueueReport, last: Heard | None) -> int:
    """Since the last report; workers count from their start, and a new engine is a new generation of the same one."""
    before = 0 if last is None else last.report.preemptions
    return report.preemptions - before if report.preemptions >= before else report.preemptions


def _check_numbers(report: QueueReport) -> None:
    """Refuse what no clock or counter can say: one NaN would spoil every sum that it enters."""
    numbers = [*report.speed, report.busy_s, report.preemptible_s]
    if report.running is not None:
        numbers += (report.running.elapsed_s, report.running.cost_s, report.running.gives_way_s or 0.0)
    for queued in report.queued:
        numbers += (queued.waited_s, queued.own_s, queued.slo_s)
    if not all(-_MAX_NUMBER < number < _MAX_NUMBER for number in numbers):
        raise WireError("a number without meaning")
    if not 0 <= report.generation < 1 << 63:
        raise WireError("a generation without meaning")
    if not 0 <= report.preemptions < 1 << 63:
        raise WireError("a count without meaning")
