"""The router's HTTP surface: which path does what, and what its answers say about the decision."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from dualmap.types import ChoiceRule, Slo
from dualmap_router.answer import Answer, decision_headers, engine_headers
from dualmap_router.endpoints import ADMINISTRATION, INFERENCE_PATHS, TEXT_STREAMS, label
from dualmap_router.errors import ApiError, ClientGoneError, not_found, overloaded, unavailable
from dualmap_router.explain import explain
from dualmap_router.flight import Flight
from dualmap_router.http_message import JSON, HttpRequest, HttpResponse, Pairs
from dualmap_router.isolation import isolation_for
from dualmap_router.local_pages import LocalPages
from dualmap_router.metrics import RouterMetrics
from dualmap_router.models import Models
from dualmap_router.pilot import Pilot
from dualmap_router.placement import Placement
from dualmap_router.prompt import Prompt
from dualmap_router.request import InferenceRequest, Options, model_of, parse_inference, parse_options
from dualmap_router.settings import RouterSettings
from dualmap_router.stream_record import StreamRecord, StreamRecords
from dualmap_router.tenant_limits import TenantLimits
from dualmap_router.ui.pages import Pages
from dualmap_router.ui.request_log import FlightWatch
from dualmap_router.urgency import check_urgency
from dualmap_service.logs import of_request

log = logging.getLogger(__name__)

_chance = random.Random()
"""Of ids, which must differ and need not be secret: the system's own source costs a system call each time."""

Work = Callable[[HttpRequest, HttpResponse, str, Pairs], Awaitable[None]]
"""Request, answer, request id and what to tell of the tenant's limits."""


class Api:
    """The handler of every HTTP request."""

    def __init__(
        self,
        settings: RouterSettings,
        router: str,
        placement: Placement,
        models: Models,
        pilot: Pilot,
        metrics: RouterMetrics,
        traces: FlightWatch,
        records: StreamRecords,
        limits: TenantLimits,
        pages: Pages,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._settings = settings
        self._router = router
        self._placement = placement
        self._models = models
        self._pilot = pilot
        self._metrics = metrics
        self._traces = traces
        self._records = records
        self._limits = limits
        self._isolation = isolation_for(settings)
        self._pages = pages
        self._local = LocalPages(settings.open_metrics, metrics, models, state)
        self._slo = Slo(settings.slo_ttft_s, settings.slo_ttft_per_1k_tokens_s)
        self._rule = settings.rule()
        self.in_flight = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()

    async def handle(self, request: HttpRequest, response: HttpResponse) -> None:
        """Answer one HTTP request."""
        path = request.path
        request_id = _request_id(request.get("x-request-id"))
        own = [("x-request-id", request_id)]
        try:
            if path in INFERENCE_PATHS:
                await self._counted(self._inference, request, response, request_id)
            elif not self._local.answer(request, response):
                if self._pages.owns(path):
                    await self._pages.answer(request, response)
                elif path.startswith("/debug/"):
                    await self._debug(request, response)
                else:
                    await self._counted(self._passthrough, request, response, request_id)
        except ApiError as error:
            self._metrics.request(label(path), error.status)
            response.fail(error, own)
        except ClientGoneError:
            self._metrics.client_gone.inc()
        except Exception:
            log.exception("request.failed", extra=of_request(request_id, request.trace_id, path=path))
            self._metrics.request(label(path), 500)
            if not response.started:
                fault = ApiError(500, "internal error of the router", "internal_error", "internal_error")
                response.fail(fault, own)

    def refused(self, error: ApiError) -> None:
        """Count what was answered before it was a request."""
        self._metrics.request("other", error.status)

    async def _counted(
        self, work: Work, request: HttpRequest, response: HttpResponse, request_id: str
    ) -> None:
        """Count a request that an engine works for, also among its tenant's."""
        self.in_flight += 1
        self.idle.clear()
        caller = request.caller
        try:
            if caller.limits is None:
                await work(request, response, request_id, ())
                return
            standing = await self._limits.enter(caller, caller.limits)
            try:
                await work(request, response, request_id, standing)
            finally:
                self._limits.leave(caller, caller.limits)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    # Inference

    async def _inference(
        self, request: HttpRequest, response: HttpResponse, request_id: str, standing: Pairs
    ) -> None:
        if request.method != "POST":
            raise ApiError(405, f"{request.path} takes POST", code="method_not_allowed")
        self._admit()
        started_s = time.monotonic()
        options, inference = self._read(request, request.path)
        record = None
        if (
            inference.stream
            and options.resume
            and request.path in TEXT_STREAMS
            and self._settings.resume_streams
        ):
            record = self._records.open()
        sink = self._answer(request, response, inference.stream, record)
        flight = self._flight(request, request_id, started_s, inference, options, sink)
        flight.record, flight.standing = record, standing
        try:
            await self._fly(flight, request, response)
        finally:
            if record is not None:
                record.close()

    def _read(self, request: HttpRequest, path: str) -> tuple[Options, InferenceRequest]:
        """What is asked, by the endpoint's form; its body is its tenant's own from here on."""
        options = parse_options(request.get)
        inference = parse_inference(path, request.body)
        check_urgency(request)
        self._models.check(inference.model)
        return options, self._isolation.inference(request, inference)

    def _flight(
        self,
        request: HttpRequest,
        request_id: str,
        started_s: float,
        inference: InferenceRequest,
        options: Options,
        sink: Answer,
    ) -> Flight:
        adapter = self._models.adapter(inference.model)
        prompt = self._placement.prompt(inference, adapter, options.prefix_key)
        slo_s, rule = self._terms(options, prompt)
        streams_openai = inference.stream and request.path in TEXT_STREAMS
        return Flight(
            request_id=request_id,
            method="POST",
            path=request.target,
            label=label(request.path),
            headers=engine_headers(request),
            body=request.body,
            first_body=request.body,
            tenant=request.caller.tenant,
            prefix_key=options.prefix_key,
            started_s=started_s,
            sink=sink,
            model=inference.model,
            prompt=prompt,
            slo_s=slo_s,
            rule=rule,
            priority=options.priority if options.priority is not None else inference.priority,
            streamed=inference.stream,
            relay=sink.relay if inference.stream else None,
            hide_usage=streams_openai and not inference.wants_usage and not inference.has_stream_options,
        )

    def _terms(self, options: Options, prompt: Prompt) -> tuple[float, ChoiceRule]:
        """The objective and the rule of a request's decision."""
        slo_s = options.slo_s if options.slo_s is not None else self._slo.for_prompt(prompt.num_tokens)
        return slo_s, self._rule if options.policy is None else replace(self._rule, policy=options.policy)

    def _answer(
        self,
        request: HttpRequest,
        response: HttpResponse,
        stream: bool,
        record: StreamRecord | None = None,
    ) -> Answer:
        named = label(request.path)
        return Answer(
            response,
            stream,
            self._settings.max_answer_bytes,
            lambda flight: decision_headers(flight, self._router),
            lambda status: self._metrics.request(named, status),
            record,
        )

    async def _fly(self, flight: Flight, request: HttpRequest, response: HttpResponse) -> None:
        response.on_gone = flight.client_gone
        self._traces.begin(flight, request.get("traceparent"))
        try:
            await self._pilot.fly(flight)
        except BaseException as error:
            self._traces.end(flight, error)
            request.trace_id = flight.trace_id
            raise
        self._traces.end(flight, None)

    def _admit(self) -> None:
        if self.draining:
            raise unavailable("this router is shutting down")
        if self.in_flight > self._settings.max_in_flight:
            raise overloaded("too many requests in flight")

    # Everything else

    async def _debug(self, request: HttpRequest, response: HttpResponse) -> None:
        """What only administrators may see."""
        request.caller.check_admin()
        if request.path != "/debug/explain":
            raise not_found(request.path)
        await self._explain(request, response)

    async def _explain(self, request: HttpRequest, response: HttpResponse) -> None:
        """A dry run: what would be decided for this body, and over what state."""
        if request.method != "POST":
            raise ApiError(405, "POST the body of an inference request", code="method_not_allowed")
        path = "/v1/chat/completions" if b'"messages"' in request.body else "/v1/completions"
        options, inference = self._read(request, path)
        adapter = self._models.adapter(inference.model)
        prompt = self._placement.prompt(inference, adapter, options.prefix_key)
        report = await explain(self._placement, prompt, *self._terms(options, prompt))
        response.send(200, [JSON], msgspec.json.encode(report))

    async def _passthrough(
        self, request: HttpRequest, response: HttpResponse, request_id: str, standing: Pairs
    ) -> None:
        """Hand the request as it is to any engine that serves the model it names."""
        path = request.path
        inside = path.startswith(ADMINISTRATION)
        if inside or not path.startswith(self._settings.passthrough) or ".." in path:
            raise not_found(path)
        self._admit()
        check_urgency(request)
        self._isolation.passthrough(request)
        flight = Flight(
            request_id=request_id,
            method=request.method,
            path=request.target,
            label=label(path),
            headers=engine_headers(request),
            body=request.body,
            started_s=time.monotonic(),
            sink=self._answer(request, response, True),
            model=model_of(request.body),
            standing=standing,
        )
        await self._fly(flight, request, response)


def _request_id(given: str | None) -> str:
    """The client's id if it is short and printable, since it goes into queues and telemetry; else a new one."""
    if given is not None and len(given) <= 128 and given.isascii() and given.isprintable() and given:
        return given
    return f"{_chance.getrandbits(128):032x}"
