"""The worker's spans of one request: `queue` until the engine gets it, then `engine` until its last byte.

A request that is preempted has a pair of them for each time that it waited and ran.
They continue the trace of a `traceparent` with the sampled flag; the engine gets one of its own, so that the spans
that vLLM makes join.
"""

from typing import TYPE_CHECKING

from dualmap_service.tracing import Tracing, trace_id_of, traceparent_of
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.usage import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class FlowTrace:
    """The spans of one request in this worker."""

    def __init__(self, tracing: Tracing, parent: "Context", instance: str, submit: pb.Submit) -> None:
        from opentelemetry.trace import SpanKind

        self._tracing = tracing
        self._parent = parent
        self._instance = instance
        placement = submit.placement
        self._waiting: dict[str, str | int | bool] = {
            "dualmap.instance": instance,
            "dualmap.prompt_tokens": placement.prompt_tokens,
            "dualmap.cached_tokens": placement.cached_tokens,
            "dualmap.feasible": placement.feasible,
            "dualmap.moves": placement.moves,
        }
        self._span: Span | None = tracing.span("queue", parent, SpanKind.INTERNAL, self._waiting)
        self.trace_id = trace_id_of(self._span)

    def started(self) -> str:
        """The request goes to the engine; returns the `traceparent` for it."""
        from opentelemetry.trace import SpanKind

        if self._span is not None:
            self._span.end()
        self._span = self._tracing.span(
            "engine", self._parent, SpanKind.CLIENT, {"dualmap.instance": self._instance}
        )
        return traceparent_of(self._span)

    def first_byte(self, status: int, prefill_s: float | None) -> None:
        """The engine's answer begins; what the prefill took, where it is known."""
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", status)
        self._span.add_event("first_byte", {} if prefill_s is None else {"dualmap.prefill_s": prefill_s})

    def preempted(self, cached_tokens: int) -> None:
        """It left the engine and waits again, with so many tokens expected in the cache."""
        from opentelemetry.trace import SpanKind

        if self._span is not None:
            self._span.add_event("preempted", {"dualmap.cached_tokens": cached_tokens})
            self._span.end()
        self._waiting["dualmap.cached_tokens"] = cached_tokens
        self._span = self._tracing.span("queue", self._parent, SpanKind.INTERNAL, self._waiting)

    def moved(self, target: str) -> None:
        """The rebalancer took it off the queue."""
        if self._span is not None:
            self._span.add_event("moved", {"dualmap.target": target})

    def failed(self, kind: "pb.Failed.Kind.ValueType") -> None:
        """This attempt failed."""
        from opentelemetry.trace import StatusCode

        if self._span is not None:
            self._span.set_status(StatusCode.ERROR, pb.Failed.Kind.Name(kind))

    def end(self, usage: Usage | None) -> None:
        """The request has left this worker."""
        span, self._span = self._span, None
        if span is None:
            return
        if usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
            if usage.cached_tokens is not None:
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        span.end()


class FlowTraces:
    """Which requests of a worker are traced."""

    def __init__(self, tracing: Tracing, instance: str) -> None:
        self._tracing = tracing
        self._instance = instance

    def begin(self, submit: pb.Submit) -> FlowTrace | None:
        """The trace of a request whose router traces it."""
        if not self._tracing.enabled:
            return None
        given = next((h.value for h in submit.headers if h.name == "traceparent"), None)
        parent = self._tracing.sampled(given, chance=False)
        return None if parent is None else FlowTrace(self._tracing, parent, self._instance, submit)
