"""Tracing: spans of a request across router, worker and engine, exported over OTLP/gRPC.

The router decides once whether a request is sampled: as its caller's `traceparent` says, else by chance. Who gets a
`traceparent` with the sampled flag makes spans too. Where no endpoint is set OpenTelemetry is not even imported; a
request that is not sampled makes no span. The SDK's own thread exports in batches and drops what a dead collector does
not take.
"""

import logging
import random
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind

Attributes: TypeAlias = Mapping[str, str | bool | int | float]

_EXPORT_S = 2.0
_FLUSH_S = 3.0


class Tracing:
    """Makes spans and exports them, or does nothing where no endpoint is set."""

    def __init__(self, service: str, instance: str, endpoint: str, share: float) -> None:
        """`endpoint` is a collector's OTLP/gRPC URL; `share` of the requests without a `traceparent` are sampled."""
        self._share = share
        self._provider: TracerProvider | None = None
        if endpoint:
            self._start(service, instance, endpoint)

    def _start(self, service: str, instance: str, endpoint: str) -> None:
        # A second of imports, for those who trace.
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # A collector that is away is no news every few seconds.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        resource = Resource.create({"service.name": f"dualmap-{service}", "service.instance.id": instance})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_S
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("dualmap")
        self._propagator = TraceContextTextMapPropagator()
        self._nothing = Context()

    @property
    def enabled(self) -> bool:
        """Whether anybody wants spans."""
        return self._provider is not None

    def sampled(self, traceparent: str | None, chance: bool = True) -> "Context | None":
        """The context in which a request's spans begin; None when it is not sampled.

        With `chance`, a request that brings no valid `traceparent` may begin a trace of its own.
        """
        if self._provider is None:
            return None
        if traceparent is not None:
            from opentelemetry.trace import get_current_span

            context = self._propagator.extract({"traceparent": traceparent}, self._nothing)
            parent = get_current_span(context).get_span_context()
            if parent.is_valid:
                return context if parent.trace_flags.sampled else None
        return self._nothing if chance and random.random() < self._share else None

    def span(
        self,
        name: str,
        parent: "Context",
        kind: "SpanKind",
        attributes: Attributes,
        start_ns: int | None = None,
    ) -> "Span":
        """Begin a span; times are nanoseconds since the epoch."""
        return self._tracer.start_span(name, parent, kind, attributes, start_time=start_ns)

    def close(self) -> None:
        """Export what is left, for a moment: nobody waits long for a dead collector."""
        if self._provider is not None:
            flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
            flushing.start()
            flushing.join(_FLUSH_S)


def within(span: "Span") -> "Context":
    """The context for a span's children."""
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span, Context())


def traceparent_of(span: "Span") -> str:
    """The header that makes another process's spans children of this one."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def trace_id_of(span: "Span") -> str:
    """For logs and exemplars."""
    return f"{span.get_span_context().trace_id:032x}"
