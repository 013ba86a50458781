"""An OTLP/gRPC receiver that keeps what it gets, for tests; in containers it stands in for Jaeger.

As a program it listens on 4317 and serves the spans as JSON at http://:16686/spans.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class SpanSeen:
    """A span as it came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a span without a parent."""
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans that were exported to it."""

    def __init__(self) -> None:
        self.spans: list[SpanSeen] = []
        self._server = grpc.aio.server()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)

    async def start(self, address: str) -> int:
        """Listen; returns the port."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Close."""
        await self._server.stop(0.2)

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Spans arrive."""
        for resource in request.resource_spans:
            service = _plain(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_seen(service, span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[SpanSeen]:
        """The spans of one trace, by their beginning."""
        return sorted((s for s in self.spans if s.trace_id == trace_id), key=lambda s: s.start_ns)

    def find(self, wanted: Callable[[SpanSeen], bool]) -> list[SpanSeen]:
        """The spans that are wanted."""
        return [span for span in self.spans if wanted(span)]


def _seen(service: str, span: Any) -> SpanSeen:
    return SpanSeen(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        is_error=span.status.code == 2,
        attributes=_plain(span.attributes),
        events={event.name: _plain(event.attributes) for event in span.events},
    )


def _plain(attributes: "list[KeyValue] | Any") -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


async def _main() -> None:
    receiver = Receiver()
    await receiver.start("0.0.0.0:4317")

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps([asdict(span) for span in receiver.spans]).encode()
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(page, "0.0.0.0", 16686)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
