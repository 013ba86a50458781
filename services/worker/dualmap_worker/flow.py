"""One request's way through this worker.

A request waits in the admission queue, is sent to the engine when admitted, and its answer goes back as
it comes, unparsed. The answer's head is held until the first body byte: until then nothing was sent and
another instance may still start it, or this one again: a request that is preempted leaves the engine,
waits, and starts once more, and nothing of the attempt before is left.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dualmap.job import Job
from dualmap_service.logs import of_request
from dualmap_wire.telemetry import MAX_TENANT_CHARS
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.engine import EngineAnswer
from dualmap_worker.errors import (
    BadAnswerError,
    EngineDiedError,
    EngineError,
    EngineLostError,
    EngineTimeoutError,
)
from dualmap_worker.holdings import Carried
from dualmap_worker.kv_wire import SESSION_HEADER
from dualmap_worker.outbox import Outbox
from dualmap_worker.usage import BodyTap, StreamTap, Usage, ask_usage

if TYPE_CHECKING:
    from dualmap_worker.relay import Requests

log = logging.getLogger(__name__)

_FAILURES: Mapping[type[EngineError], "pb.Failed.Kind.ValueType"] = {
    EngineTimeoutError: pb.Failed.TIMEOUT,
    BadAnswerError: pb.Failed.BAD_ANSWER,
    EngineLostError: pb.Failed.ENGINE_LOST,
    EngineDiedError: pb.Failed.ENGINE_LOST,
}


class Flow:
    """One request between its router's session and the engine."""

    __slots__ = (
        "_abandoned", "_answered", "_requests", "_task", "_trace", "carried", "computed",
        "job", "outbox", "router", "submit", "usage",
    )  # fmt: skip

    def __init__(self, submit: pb.Submit, router: str, outbox: Outbox, requests: "Requests") -> None:
        placement = submit.placement
        self.submit = submit
        self.router = router
        self.outbox = outbox
        self._requests = requests
        self._task: asyncio.Task[None] | None = None
        self.usage: Usage | None = None
        self._answered = False
        self.carried: Carried | None = None
        """Its prompt's chunks, while the engine's KV events are followed."""
        self.computed = False
        """Whether the engine has prefilled it."""
        self._abandoned = False
        self._trace = requests.traces.begin(submit)
        self.job = Job(
            request_id=submit.request_id,
            arrival_s=asyncio.get_running_loop().time() - placement.age_s,
            prompt_tokens=placement.prompt_tokens,
            cached_tokens=placement.cached_tokens,
            slo_s=placement.slo_s,
            priority=placement.priority,
            tenant=placement.tenant[:MAX_TENANT_CHARS],
            streamed=submit.streamed,
            feasible=placement.feasible,
            start=self.start,
            stop=self._stop,
            prefilled=self.prefilled,
        )

    def out(self, event: pb.Event, urgent: bool) -> None:
        """Send an event to the router."""
        event.stream = self.submit.stream
        self.outbox.put(event, urgent)

    def fail(self, kind: "pb.Failed.Kind.ValueType", message: str, begun: bool = False) -> None:
        """Tell the router that this attempt is over; `begun` if the engine was lost with it."""
        if self._trace is not None:
            self._trace.failed(kind)
        self.out(pb.Event(failed=pb.Failed(kind=kind, message=message, begun=begun)), urgent=True)

    def refuse(self, kind: "pb.Failed.Kind.ValueType", message: str) -> None:
        """Tell the router that this worker does not take it."""
        self.fail(kind, message)
        self.forgotten()

    def move(self, target: str) -> None:
        """Tell the router to send it to another instance."""
        if self._trace is not None:
            self._trace.moved(target)
        self.out(pb.Event(moved=pb.Moved(target=target)), urgent=True)

    def forgotten(self) -> None:
        """It has left this worker."""
        if self._trace is not None:
            self._trace.end(self.usage)

    def start(self) -> None:
        """Send it to the engine."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"flow-{self.job.request_id}")
        # A callback, not a `finally` inside: a task that is cancelled before its first step never enters one.
        self._task.add_done_callback(self._done)

    def _stop(self) -> None:
        """Take it out of the engine, to wait again."""
        assert self._task is not None
        self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        if self.job.stopping and task.cancelled() and not self._abandoned:
            self._task = None
            self._requests.stopped(self)
            return
        if not task.cancelled() and task.exception() is not None:
            log.error("relay.failed", extra=self._named(), exc_info=task.exception())
            self.fail(pb.Failed.ENGINE_LOST, "internal error of the worker")
        self._requests.finished(self, self.usage)

    def prefilled(self) -> None:
        """The estimate says that an unstreamed answer's prefill is over: its charge can go."""
        queued_s = (self.job.started_s or 0.0) - self.job.arrival_s
        self.out(pb.Event(prefilled=pb.Prefilled(queued_s=queued_s)), urgent=False)

    def abort(self) -> None:
        """Nobody waits for it: off the queue, or out of the engine."""
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()
        else:
            self._requests.drop_queued(self)

    def preempted(self) -> None:
        """It waits again."""
        log.debug("relay.preempted", extra=self._named(times=self.job.preemptions))
        if self._trace is not None:
            self._trace.preempted(self.job.cached_tokens)

    def _named(self, **facts: object) -> dict[str, object]:
        """The facts of a log line about it."""
        trace_id = "" if self._trace is None else self._trace.trace_id
        return of_request(self.job.request_id, trace_id, **facts)

    @property
    def is_silent(self) -> bool:
        """Whether it is in the engine, which has said nothing of it yet."""
        return self._task is not None and not self._answered

    async def _run(self) -> None:
        submit = self.submit
        body = ask_usage(submit.body) if submit.hide_usage else submit.body
        ours = {"x-request-id": submit.request_id}
        if self.carried is not None:
            # vLLM names the request by it that stored a block; a client's own would say the conversation.
            ours[SESSION_HEADER] = self.carried.session
        if self._trace is not None:
            ours["traceparent"] = self._trace.started()
        headers = [(h.name, h.value) for h in submit.headers if h.name.lower() not in ours]
        headers += ours.items()
        try:
            async with self._requests.engine.request(submit.method, submit.path, headers, body) as answer:
                await self._answer(answer)
            self._end()
        except EngineError as exc:
            # The router passes the failure's message on to the client: the engine's address stays here.
            log.warning("relay.engine_failed", extra=self._named(error=str(exc)[:500]))
            self.fail(_FAILURES[type(exc)], exc.public, isinstance(exc, EngineDiedError))

    async def _answer(self, answer: EngineAnswer) -> None:
        """Relay the answer."""
        tap = StreamTap(self.submit.hide_usage, self.submit.path) if answer.is_stream else BodyTap()
        async for chunk in answer.chunks():
            data = tap.feed(chunk)
            if data:
                if not self._answered:
                    self._head(answer)
                await self.outbox.room()
                self.out(pb.Event(data=data), urgent=False)
            if tap.died_of is not None:
                raise EngineDiedError(f"{self._requests.engine.url} failed in the middle: {tap.died_of}")
        if not self._answered:
            self._head(answer)
        rest = tap.finish()
        if rest:
            self.out(pb.Event(data=rest), urgent=False)
        self.usage = tap.usage

    def _head(self, answer: EngineAnswer) -> None:
        """The first body byte: the prefill is over."""
        self._answered = True
        # An engine may answer a request for a stream with a whole body, whose first byte tells of its decode.
        self.job.streamed = self.job.streamed and answer.is_stream
        self.computed = answer.status < 300
        self._requests.first_byte(self, telling=self.computed)
        job = self.job
        if self._trace is not None:
            self._trace.first_byte(answer.status, job.prefill_s)
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
        if self.usage is not None:
            end.prompt_tokens = self.usage.prompt_tokens
            end.cached_tokens = self.usage.cached_tokens or 0
            end.output_tokens = self.usage.output_tokens
        self.out(pb.Event(end=end), urgent=True)
