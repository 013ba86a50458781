"""The router's spans of one request: the request, its decisions, and each dispatch to an instance.

    POST /v1/chat/completions
      route            one per decision; what was chosen and why
      dispatch         one per instance that was tried; a move ends it with an event
        queue, engine  by the worker, behind the `traceparent` that dispatch hands on

A request that was not sampled but fails, or misses its objective, is traced from when that is clear, so that its first
span is there, though not what it had done before and the worker's part of that; no more than a few a second are, since
an outage fails thousands.
"""

import time
from typing import TYPE_CHECKING

from dualmap.types import Reason
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.placement import Placed
from dualmap_router.timing import Timing
from dualmap_service.tracing import Tracing, trace_id_of, traceparent_of, within
from dualmap_wire.v1 import worker_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
_KEPT_PER_S = 10


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracing: Tracing, root: "Span") -> None:
        self._tracing = tracing
        self._root = root
        self._context = within(root)
        self._dispatch: Span | None = None
        self.trace_id = trace_id_of(root)

    def routed(self, placed: Placed, reason: Reason | None, timing: Timing) -> None:
        """A decision was made."""
        from opentelemetry.trace import SpanKind, StatusCode

        attributes: dict[str, str | bool | int | float] = {
            "dualmap.instance": placed.instance,
            "dualmap.reason": str(reason),
            "dualmap.candidates": ",".join(placed.candidates),
            "dualmap.backup": placed.backup or "",
            "dualmap.cached_chunks": placed.owned_chunks,
            "dualmap.cached_tokens": placed.cached_tokens,
            "dualmap.feasible": placed.feasible,
            "dualmap.predicted_prefill_s": placed.own_s,
            "dualmap.predicted_ttft_s": placed.ttft_s,
            "dualmap.shared": placed.shared,
        }
        span = self._tracing.span("route", self._context, SpanKind.INTERNAL, attributes, timing.start_ns)
        redis = {"db.system.name": "redis", "db.operation.name": "FCALL"}
        for start_ns, end_ns, answered in timing.calls:
            call = self._tracing.span("FCALL route", within(span), SpanKind.CLIENT, redis, start_ns)
            if not answered:
                call.set_status(StatusCode.ERROR)
            call.end(end_ns)
        span.end()

    def dispatch(self, instance: str, submit: pb.Submit) -> None:
        """A request leaves for an instance, with this span as the parent of what follows."""
        from opentelemetry.trace import SpanKind

        attributes = {"rpc.system": "grpc", "dualmap.instance": instance}
        span = self._dispatch = self._tracing.span("dispatch", self._context, SpanKind.CLIENT, attributes)
        others = [header for header in submit.headers if header.name not in ("traceparent", "tracestate")]
        del submit.headers[:]
        submit.headers.extend([*others, pb.Header(name="traceparent", value=traceparent_of(span))])

    def first_token(self, ttft_s: float) -> None:
        """The first token of a stream came."""
        self._root.add_event("first_token", {"dualmap.ttft_s": ttft_s})

    def resumed(self) -> None:
        """A stream that broke off goes on with another instance."""
        self._root.add_event("resumed")

    def attempted(self, verdict: pb.Moved | pb.Failed | None) -> None:
        """An attempt is over: answered, moved or failed."""
        from opentelemetry.trace import StatusCode

        span, self._dispatch = self._dispatch, None
        if span is None:
            return
        if isinstance(verdict, pb.Moved):
            span.add_event("moved", {"dualmap.target": verdict.target})
        elif verdict is not None:
            span.set_status(StatusCode.ERROR, pb.Failed.Kind.Name(verdict.kind))
        span.end()

    def end(self, flight: Flight, error: BaseException | None) -> None:
        """The request is over."""
        self.attempted(None)
        _finish(self._root, flight, error)


class RequestTraces:
    """Decides which requests are traced, and ends their traces."""

    def __init__(self, tracing: Tracing, router: str) -> None:
        self._tracing = tracing
        self._router = router
        self._second = 0
        self._made_in_second = 0

    def begin(self, flight: Flight, traceparent: str | None) -> None:
        """Give a flight its trace, if it is sampled."""
        parent = self._tracing.sampled(traceparent)
        if parent is not None:
            flight.trace = RequestTrace(self._tracing, self._root(flight, parent))

    def end(self, flight: Flight, error: BaseException | None) -> None:
        """A flight is over, with what it raised."""
        if _is_telling(flight, error):
            self.keep(flight)
        if flight.trace is not None:
            flight.trace.end(flight, error)

    def keep(self, flight: Flight) -> None:
        """It went wrong: from here on it is traced, if it was not and if not too many have."""
        if flight.trace is None and self._tracing.enabled and self._may_make_one():
            from opentelemetry.context import Context

            flight.trace = RequestTrace(self._tracing, self._root(flight, Context()))

    def _may_make_one(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._made_in_second = second, 0
        self._made_in_second += 1
        return self._made_in_second <= _KEPT_PER_S

    def _root(self, flight: Flight, parent: "Context") -> "Span":
        from opentelemetry.trace import SpanKind

        attributes: dict[str, str | int | float | bool] = {
            "http.request.method": flight.method,
            "url.path": flight.path.partition("?")[0],
            "dualmap.router": self._router,
            "dualmap.request_id": flight.request_id,
        }
        if flight.prompt is not None:
            attributes |= {
                "gen_ai.operation.name": _OPERATIONS.get(flight.label, flight.label),
                "gen_ai.request.model": flight.model or "",
                "dualmap.prompt_tokens": flight.prompt.num_tokens,
                "dualmap.slo_ttft_s": flight.slo_s,
                "dualmap.streamed": flight.streamed,
            }
        age_s = time.monotonic() - flight.started_s
        name = f"{flight.method} {flight.label}"
        return self._tracing.span(
            name, parent, SpanKind.SERVER, attributes, time.time_ns() - int(age_s * 1e9)
        )


def _is_telling(flight: Flight, error: BaseException | None) -> bool:
    failed = error is not None and not isinstance(error, ApiError | ClientGoneError)
    return failed or flight.status(error) >= 500 or flight.missed_slo or flight.interrupted


def _finish(span: "Span", flight: Flight, error: BaseException | None) -> None:
    from opentelemetry.trace import StatusCode

    status = flight.status(error)
    if status:
        span.set_attribute("http.response.status_code", status)
    span.set_attribute("dualmap.moves", flight.moves)
    span.set_attribute("dualmap.resubmissions", flight.attempts)
    if flight.placed is not None:
        span.set_attribute("dualmap.instance", flight.placed.instance)
        span.set_attribute("dualmap.predicted_ttft_s", flight.placed.ttft_s)
    if flight.ttft_s is not None:
        span.set_attribute("dualmap.ttft_s", flight.ttft_s)
        span.set_attribute("dualmap.slo_met", not flight.missed_slo)
    if isinstance(error, ClientGoneError):
        span.add_event("client_gone")
    elif error is not None or flight.interrupted or status >= 500:
        span.set_status(StatusCode.ERROR, "interrupted" if flight.interrupted else str(error or status))
    span.end()
