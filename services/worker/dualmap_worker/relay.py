"""The relay: one request's way through this worker, from its arrival to its last byte.

A request waits in the admission queue, is sent to the engine when admitted, and its answer goes back as
it comes, unparsed. The answer's head is held until the first body byte: until then nothing was sent and
another instance may still start it.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping

from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.admission import Admission, Job
from dualmap_worker.engine import Engine, EngineAnswer
from dualmap_worker.errors import BadAnswerError, EngineError, EngineLostError, EngineTimeoutError
from dualmap_worker.outbox import Outbox
from dualmap_worker.usage import BodyTap, StreamTap, Usage, ask_usage

log = logging.getLogger(__name__)

_FAILURES: Mapping[type[EngineError], "pb.Failed.Kind.ValueType"] = {
    EngineTimeoutError: pb.Failed.TIMEOUT,
    BadAnswerError: pb.Failed.BAD_ANSWER,
    EngineLostError: pb.Failed.ENGINE_LOST,
}


class Requests:
    """All requests in this worker, by router and stream."""

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        max_queued: int,
        changed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._max_queued = max_queued
        self._changed = changed
        self._flows: dict[tuple[Outbox, int], Flow] = {}
        self._by_job: dict[str, Flow] = {}
        self._timer: asyncio.TimerHandle | None = None
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
        flow = Flow(submit, router, outbox, self)
        if self.draining:
            flow.fail(pb.Failed.DRAINING, "this worker takes no more requests")
            return
        if self.engine_away:
            flow.fail(pb.Failed.ENGINE_LOST, EngineLostError.public)
            return
        if submit.queued and len(self._admission.queue) >= self._max_queued:
            flow.fail(pb.Failed.QUEUE_FULL, "the admission queue is full")
            return
        if flow.job.request_id in self._by_job:
            # The key of queue and control must be unique, whatever ids clients choose.
            flow.job.request_id = f"{flow.job.request_id}#{secrets.token_hex(8)}"
        self._flows[outbox, submit.stream] = flow
        self._by_job[flow.job.request_id] = flow
        self.idle.clear()
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
        flow.out(pb.Event(moved=pb.Moved(target=target)), urgent=True)
        self.forget(flow)
        return True

    def drain(self) -> int:
        """Take nothing more, and give every queued request back to its router; returns how many."""
        self.draining = True
        return self._hand_back(pb.Failed.DRAINING, "this worker is draining")

    def lose_engine(self) -> int:
        """The engine does not answer: give back what no client has seen a byte of; returns how many.

        What hangs in the engine would wait for its time-out there. Streams go on if the engine does.
        """
        self.engine_away = True
        handed_back = self._hand_back(pb.Failed.ENGINE_LOST, EngineLostError.public)
        silent = [flow for flow in self._flows.values() if flow.is_silent]
        for flow in silent:
            flow.fail(pb.Failed.ENGINE_LOST, EngineLostError.public)
            flow.abort()
        return handed_back + len(silent)

    def _hand_back(self, kind: "pb.Failed.Kind.ValueType", message: str) -> int:
        queued = list(self._admission.queue)
        for request_id in queued:
            self._admission.take(request_id)
            flow = self._by_job[request_id]
            flow.fail(kind, message)
            self.forget(flow)
        return len(queued)

    def flow(self, request_id: str) -> "Flow | None":
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

    def first_byte(self, flow: "Flow", telling: bool) -> None:
        """A prefill is over; an error tells nothing of the engine's speed."""
        self._admission.first_byte(flow.job, asyncio.get_running_loop().time(), telling)
        self.pump()

    def finished(self, flow: "Flow", usage: Usage | None) -> None:
        """A request has left the engine."""
        now_s = asyncio.get_running_loop().time()
        if usage is None:
            self._admission.finish(flow.job, now_s)
        else:
            self._admission.finish(flow.job, now_s, usage.prompt_tokens, usage.cached_tokens)
        self.forget(flow)
        self.pump()

    def forget(self, flow: "Flow") -> None:
        """Nothing is left to do for a request."""
        self._flows.pop((flow.outbox, flow.submit.stream), None)
        self._by_job.pop(flow.job.request_id, None)
        if not self._flows:
            self.idle.set()
        self._changed()

    @property
    def engine(self) -> Engine:
        """The engine behind this worker."""
        return self._engine

    def drop_queued(self, flow: "Flow") -> None:
        """Take an aborted request off the queue."""
        if self._admission.take(flow.job.request_id) is not None:
            self.forget(flow)

    def close(self) -> None:
        """Stop the timer and every request."""
        if self._timer is not None:
            self._timer.cancel()
        for flow in list(self._flows.values()):
            flow.abort()


class Flow:
    """One request between its router's session and the engine."""

    __slots__ = ("_answered", "_requests", "_task", "_usage", "job", "outbox", "router", "submit")

    def __init__(self, submit: pb.Submit, router: str, outbox: Outbox, requests: Requests) -> None:
        placement = submit.placement
        self.submit = submit
        self.router = router
        self.outbox = outbox
        self._requests = requests
        self._task: asyncio.Task[None] | None = None
        self._usage: Usage | None = None
        self._answered = False
        self.job = Job(
            request_id=submit.request_id,
            arrival_s=asyncio.get_running_loop().time() - placement.age_s,
            prompt_tokens=placement.prompt_tokens,
            cached_tokens=placement.cached_tokens,
            slo_s=placement.slo_s,
            priority=placement.priority,
            streamed=submit.streamed,
            feasible=placement.feasible,
            start=self.start,
            prefilled=self.prefilled,
        )

    def out(self, event: pb.Event, urgent: bool) -> None:
        """Send an event to the router."""
        event.stream = self.submit.stream
        self.outbox.put(event, urgent)

    def fail(self, kind: "pb.Failed.Kind.ValueType", message: str, unanswered: bool = True) -> None:
        """Tell the router that this attempt is over."""
        self.out(pb.Event(failed=pb.Failed(kind=kind, message=message, unanswered=unanswered)), urgent=True)

    def start(self) -> None:
        """Send it to the engine."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"flow-{self.job.request_id}")
        # A callback, not a `finally` inside: a task that is cancelled before its first step never enters one.
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._requests.finished(self, self._usage)
        if not task.cancelled() and task.exception() is not None:
            log.error("relay.failed", extra={"request_id": self.job.request_id}, exc_info=task.exception())
            self.fail(pb.Failed.ENGINE_LOST, "internal error of the worker", not self._answered)

    def prefilled(self) -> None:
        """The estimate says that an unstreamed answer's prefill is over: its charge can go."""
        queued_s = (self.job.started_s or 0.0) - self.job.arrival_s
        self.out(pb.Event(prefilled=pb.Prefilled(queued_s=queued_s)), urgent=False)

    def abort(self) -> None:
        """Nobody waits for it: off the queue, or out of the engine."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._requests.drop_queued(self)

    @property
    def is_silent(self) -> bool:
        """Whether it is in the engine, which has said nothing of it yet."""
        return self._task is not None and not self._answered

    async def _run(self) -> None:
        submit = self.submit
        body = ask_usage(submit.body) if submit.hide_usage else submit.body
        headers = [(h.name, h.value) for h in submit.headers if h.name.lower() != "x-request-id"]
        headers.append(("x-request-id", submit.request_id))
        try:
            async with self._requests.engine.request(submit.method, submit.path, headers, body) as answer:
                await self._answer(answer)
            self._end()
        except EngineError as exc:
            # The router passes the failure's message on to the client: the engine's address stays here.
            log.warning(
                "relay.engine_failed", extra={"request_id": self.job.request_id, "error": str(exc)[:500]}
            )
            self.fail(_FAILURES[type(exc)], exc.public, not self._answered)

    async def _answer(self, answer: EngineAnswer) -> None:
        """Relay the answer."""
        tap = StreamTap(self.submit.hide_usage, self.submit.path) if answer.is_stream else BodyTap()
        async for chunk in answer.chunks():
            data = tap.feed(chunk)
            if not data:
                continue
            if not self._answered:
                self._head(answer)
            await self.outbox.room()
            self.out(pb.Event(data=data), urgent=False)
        if not self._answered:
            self._head(answer)
        rest = tap.finish()
        if rest:
            self.out(pb.Event(data=rest), urgent=False)
        self._usage = tap.usage

    def _head(self, answer: EngineAnswer) -> None:
        """The first body byte: the prefill is over."""
        self._answered = True
        # An engine may answer a request for a stream with a whole body, whose first byte tells of its decode.
        self.job.streamed = self.job.streamed and answer.is_stream
        self._requests.first_byte(self, telling=answer.status < 300)
        job = self.job
        head = pb.Head(
            status=answer.status,
            headers=[pb.Header(name=name, value=value) for name, value in answer.headers],
            queued_s=0.0 if job.started_s is None else job.started_s - job.arrival_s,
            prefill_s=job.prefill_s or 0.0,
        )
        # A stream's first token goes at once; a whole answer's end is about to follow, and one frame takes both.
        self.out(pb.Event(head=head), urgent=answer.is_stream)

    def _end(self) -> None:
        end = pb.End()
        if self._usage is not None:
            end.prompt_tokens = self._usage.prompt_tokens
            end.cached_tokens = self._usage.cached_tokens or 0
            end.output_tokens = self._usage.output_tokens
        self.out(pb.Event(end=end), urgent=True)
