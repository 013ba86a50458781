"""The relay: all requests in this worker, from their arrival to their last byte."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable

from dualmap.admission import Admission
from dualmap.job import Job
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.engine import Engine
from dualmap_worker.errors import EngineLostError
from dualmap_worker.flow import Flow
from dualmap_worker.holdings import Carried, Holdings
from dualmap_worker.outbox import Outbox
from dualmap_worker.trace import FlowTraces
from dualmap_worker.usage import Usage

log = logging.getLogger(__name__)


class Requests:
    """All requests in this worker, by router and stream."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        max_queued: int,
        changed: Callable[[], None],
        traces: FlowTraces,
        holdings: Holdings | None = None,
    ) -> None:
        """`holdings` follow the engine's KV events; None where it has none."""
        self._engine = engine
        self._holdings = holdings
        self._sessions = (f"dm-{secrets.token_hex(6)}-{number}" for number in itertools.count())
        self.traces = traces
        self._admission = admission
        self._max_queued = max_queued
        self._changed = changed
        self._flows: dict[tuple[Outbox, int], Flow] = {}
        self._by_job: dict[str, Flow] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.counted: Callable[[Job, Usage], None] = lambda job, usage: None
        """Told of every answer whose tokens the engine counted."""
        self.draining = False
        self.engine_away = False
        self.idle = asyncio.Event()
        self.idle.set()

    def __len__(self) -> int:
        """Requests queued or running."""
        return len(self._flows)

    # From the session

    def submit(self, submit: pb.Submit, router: str, outbox: Outbox) -> None:
        """Take a request: queue it, or send it on at once if it needs no prefill."""
        if (outbox, submit.stream) in self._flows:
            # No answer could be told from the other's; only a router that is broken says so.
            log.warning("relay.stream_in_use", extra={"router": router, "stream": submit.stream})
            return
        flow = Flow(submit, router, outbox, self)
        if self.draining:
            flow.refuse(pb.Failed.DRAINING, "this worker takes no more requests")
            return
        if self.engine_away:
            flow.refuse(pb.Failed.ENGINE_LOST, EngineLostError.public)
            return
        if submit.queued and len(self._admission.queue) >= self._max_queued:
            flow.refuse(pb.Failed.QUEUE_FULL, "the admission queue is full")
            return
        if flow.job.request_id in self._by_job:
            # The key of queue and control must be unique, whatever ids clients choose.
            flow.job.request_id = f"{flow.job.request_id}#{secrets.token_hex(8)}"
        self._flows[outbox, submit.stream] = flow
        self._by_job[flow.job.request_id] = flow
        self.idle.clear()
        self._carry(flow)
        if submit.queued:
            self._admission.add(flow.job)
            self.pump()
        else:
            flow.start()

    def cancel(self, outbox: Outbox, stream: int) -> None:
        """Nobody waits for a request any more."""
        flow = self._flows.get((outbox, stream))
        if flow is not None:
            flow.abort()

    def cancel_all(self, outbox: Outbox) -> None:
        """A session is gone, and with it every client behind it."""
        for key, flow in list(self._flows.items()):
            if key[0] is outbox:
                flow.abort()

    # From control

    def move(self, request_id: str, target: str) -> bool:
        """Take a request off the queue and tell its router to send it to `target`; false if it started."""
        flow = self._by_job.get(request_id)
        if flow is None or self._admission.take(request_id) is None:
            return False
        flow.move(target)
        self.forget(flow)
        return True

    def drain(self) -> int:
        """Take nothing more, and give every queued request back to its router; returns how many."""
        self.draining = True
        return self._hand_back()

    def lose_engine(self) -> int:
        """The engine does not answer: give back what no client has seen a byte of; returns how many.

        What hangs in the engine would wait for its time-out there. Streams go on if the engine does.
        """
        self.engine_away = True
        handed_back = self._hand_back()
        silent = [flow for flow in self._flows.values() if flow.is_silent]
        for flow in silent:
            flow.fail(pb.Failed.ENGINE_LOST, EngineLostError.public, begun=True)
            flow.abort()
        return handed_back + len(silent)

    def _hand_back(self) -> int:
        """Give every queued request back to its router; returns how many."""
        kind, message = pb.Failed.DRAINING, "this worker is draining"
        if self.engine_away:
            kind, message = pb.Failed.ENGINE_LOST, EngineLostError.public
        queued = list(self._admission.queue)
        for request_id in queued:
            self._admission.take(request_id)
            flow = self._by_job[request_id]
            flow.fail(kind, message)
            self.forget(flow)
        return len(queued)

    def flow(self, request_id: str) -> Flow | None:
        """The flow of a queued or running request."""
        return self._by_job.get(request_id)

    # From flows

    def pump(self) -> None:
        """Let in what may start, and look again when time alone changes the answer."""
        now_s = asyncio.get_running_loop().time()
        again_s = self._admission.admit(now_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if again_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(again_s, 0.001), self.pump)
        self._changed()

    def first_byte(self, flow: Flow, telling: bool) -> None:
        """A prefill is over; an error tells nothing of the engine's speed."""
        self._admission.first_byte(flow.job, asyncio.get_running_loop().time(), telling)
        self.pump()

    def stopped(self, flow: Flow) -> None:
        """A request that gives way is out of the engine: it waits again, unless nothing starts here any more."""
        self._admission.requeue(flow.job, asyncio.get_running_loop().time())
        if self._holdings is not None and flow.carried is not None:
            # The engine's events know better than the clock how far it had come.
            computed = self._holdings.computed_tokens(flow.carried)
            flow.job.cached_tokens = min(computed, flow.job.prompt_tokens - 1) or flow.job.cached_tokens
        flow.preempted()
        if self.draining or self.engine_away:
            self._hand_back()
        self.pump()

    def finished(self, flow: Flow, usage: Usage | None) -> None:
        """A request has left the engine."""
        now_s = asyncio.get_running_loop().time()
        if usage is None:
            self._admission.finish(flow.job, now_s)
        else:
            self._admission.finish(flow.job, now_s, usage.prompt_tokens, usage.cached_tokens)
            self.counted(flow.job, usage)
        self.forget(flow)
        self.pump()

    def _carry(self, flow: Flow) -> None:
        """From here on its prompt's chunks are held, or soon will be."""
        placement = flow.submit.placement
        if self._holdings is None or not placement.chunk_hashes:
            return
        packed = placement.chunk_hashes
        flow.carried = Carried(
            session=next(self._sessions),
            chunks=[packed[at : at + 8] for at in range(0, len(packed), 8)],
            chunk_bytes=placement.chunk_bytes,
            prompt_bytes=placement.prompt_bytes,
            prompt_tokens=placement.prompt_tokens,
        )
        self._holdings.arrived(flow.carried)

    def _leave(self, flow: Flow) -> None:
        """What of its prompt stays in the cache is for the engine's events to say."""
        carried, flow.carried = flow.carried, None
        if self._holdings is None or carried is None:
            return
        usage = flow.usage
        self._holdings.left(
            carried,
            asyncio.get_running_loop().time(),
            answered=flow.computed,
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            cached_tokens=usage.cached_tokens if usage is not None else None,
        )

    def forget(self, flow: Flow) -> None:
        """Nothing is left to do for a request."""
        flow.forgotten()
        self._leave(flow)
        self._flows.pop((flow.outbox, flow.submit.stream), None)
        self._by_job.pop(flow.job.request_id, None)
        if not self._flows:
            self.idle.set()
        self._changed()

    @property
    def engine(self) -> Engine:
        """The engine behind this worker."""
        return self._engine

    def drop_queued(self, flow: Flow) -> None:
        """Take an aborted request off the queue."""
        if self._admission.take(flow.job.request_id) is not None:
            self.forget(flow)

    def close(self) -> None:
        """Stop the timer and every request."""
        if self._timer is not None:
            self._timer.cancel()
        for flow in list(self._flows.values()):
            flow.abort()
