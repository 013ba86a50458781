"""The router's HTTP surface: which path does what, and what its answers say about the decision."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec

from dualmap.types import Slo
from dualmap_router import front
from dualmap_router.errors import ApiError, ClientGoneError, unavailable
from dualmap_router.explain import explain
from dualmap_router.flight import Flight, Pilot
from dualmap_router.front import Answer, Pairs
from dualmap_router.metrics import RouterMetrics
from dualmap_router.placement import Placement
from dualmap_router.request import InferenceRequest, Options, parse_inference, parse_options
from dualmap_router.settings import RouterSettings

log = logging.getLogger(__name__)

INFERENCE_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    )
)

# vLLM has these under /v1/, yet they change the engine for everybody.
_ADMINISTRATION = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class Api:
    """The RSGI application."""

    def __init__(
        self,
        settings: RouterSettings,
        router: str,
        placement: Placement,
        pilot: Pilot,
        metrics: RouterMetrics,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self._settings = settings
        self._router = router
        self._placement = placement
        self._pilot = pilot
        self._metrics = metrics
        self._state = state
        self._slo = Slo(settings.slo_ttft_s, settings.slo_ttft_per_1k_tokens_s)
        self._rule = settings.rule()
        self.in_flight = 0
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """One HTTP request."""
        if scope.proto != "http":
            return
        path = scope.path
        request_id = _request_id(scope.headers.get("x-request-id"))
        own = [("x-request-id", request_id)]
        try:
            if path in INFERENCE_PATHS:
                with self._counted():
                    await self._inference(scope, proto, path, request_id)
            elif not self._local(scope, proto, path):
                if path == "/debug/explain":
                    await self._explain(scope, proto)
                else:
                    with self._counted():
                        await self._passthrough(scope, proto, path, request_id)
        except ApiError as error:
            self._metrics.request(_label(path), error.status)
            front.send_error(proto, error, own)
        except ClientGoneError:
            self._metrics.client_gone.inc()
            # 499: nobody sees it unless the router's own time limit ended the request.
            front.send_error(proto, ApiError(499, "the client went away", code="client_closed_request"), own)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            log.exception("request.failed", extra={"path": path, "request_id": request_id})
            self._metrics.request(_label(path), 500)
            fault = ApiError(500, "internal error of the router", "internal_error", "internal_error")
            front.send_error(proto, fault, own)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request that an engine works for."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    # Inference

    async def _inference(self, scope: Any, proto: Any, path: str, request_id: str) -> None:
        if scope.method != "POST":
            raise ApiError(405, f"{path} takes POST", code="method_not_allowed")
        self._admit()
        options = parse_options(scope.headers.get)
        body = await front.read_body(scope, proto, self._settings.max_body_bytes)
        started_s = time.monotonic()
        request = parse_inference(path, body)
        self._check_model(request.model)
        sink = self._answer(proto, request.stream, path)
        flight = self._flight(scope, path, request_id, body, started_s, request, options, sink)
        await self._fly(flight, proto)

    def _flight(
        self,
        scope: Any,
        path: str,
        request_id: str,
        body: bytes,
        started_s: float,
        request: InferenceRequest,
        options: Options,
        sink: Answer,
    ) -> Flight:
        prompt = self._placement.prompt(
            request.prompt,
            request.prompt_tokens,
            self._adapter(request.model),
            request.cache_salt,
            options.prefix_key,
        )
        streams_openai = request.stream and path in ("/v1/chat/completions", "/v1/completions")
        return Flight(
            request_id=request_id,
            method="POST",
            path=front.engine_path(scope),
            headers=front.engine_headers(scope),
            body=body,
            started_s=started_s,
            sink=sink,
            prompt=prompt,
            slo_s=options.slo_s if options.slo_s is not None else self._slo.for_prompt(prompt.num_tokens),
            rule=self._rule if options.policy is None else replace(self._rule, policy=options.policy),
            priority=options.priority if options.priority is not None else request.priority,
            streamed=request.stream,
            hide_usage=streams_openai and not request.wants_usage and not request.has_stream_options,
        )

    def _answer(self, proto: Any, stream: bool, path: str) -> Answer:
        label = _label(path)
        return Answer(
            proto,
            stream,
            self._settings.max_answer_bytes,
            self._headers,
            lambda status: self._metrics.request(label, status),
        )

    async def _fly(self, flight: Flight, proto: Any) -> None:
        watch = front.watch_client(proto, flight.client_gone)
        try:
            await self._pilot.fly(flight)
        finally:
            watch.cancel()
            flight.sink.close()

    def _admit(self) -> None:
        if self.draining:
            raise unavailable("this router is shutting down")
        if self.in_flight > self._settings.max_in_flight:
            raise ApiError(
                429, "too many requests in flight", "rate_limit_error", "overloaded", retry_after_s=1
            )

    def _models(self) -> dict[str, Any]:
        """Model and adapter names that the pool serves, each with the registration that says so."""
        models: dict[str, Any] = {}
        for member in self._placement.membership.members.values():
            registration = member.registration
            for name in (registration.model, *registration.adapters):
                models.setdefault(name, registration)
        return models

    def _check_model(self, model: str | None) -> None:
        if model is None:
            return
        models = self._models()
        if models and model not in models:
            raise ApiError(
                404,
                f"the model {model!r} does not exist",
                "invalid_request_error",
                "model_not_found",
                "model",
            )

    def _adapter(self, model: str | None) -> str:
        """The LoRA adapter that a model name stands for; empty for the base model."""
        registration = self._models().get(model or "")
        return model if model and registration is not None and model != registration.model else ""

    def _headers(self, flight: Flight) -> Pairs:
        """What the answer says about the decision."""
        pairs = [("x-request-id", flight.request_id), ("x-dualmap-router", self._router)]
        placed = flight.placed
        if placed is not None:
            pairs += [
                ("x-dualmap-instance", placed.instance),
                ("x-dualmap-reason", str(flight.reason)),
                ("x-dualmap-candidates", ",".join(placed.candidates)),
                ("x-dualmap-cached-chunks", str(placed.owned_chunks)),
                ("x-dualmap-predicted-ttft-ms", f"{placed.ttft_s * 1e3:.1f}"),
                ("x-dualmap-moves", str(flight.moves)),
                ("x-dualmap-attempts", str(flight.attempts + flight.moves + 1)),
            ]
            if not placed.shared:
                pairs.append(("x-dualmap-degraded", "local"))
        return pairs

    # Everything else

    def _local(self, scope: Any, proto: Any, path: str) -> bool:
        """Answer what needs no engine; false when the path is something else."""
        if scope.method not in ("GET", "HEAD"):
            return False
        if path == "/healthz":
            front.send(proto, 200, [front.JSON], b'{"status":"ok"}')
        elif path == "/readyz":
            state = self._state()
            front.send(proto, 200 if state["ready"] else 503, [front.JSON], msgspec.json.encode(state))
        elif path == "/metrics":
            kind = ("content-type", "text/plain; version=0.0.4; charset=utf-8")
            front.send(proto, 200, [kind], self._metrics.render())
        elif path == "/v1/models":
            front.send(proto, 200, [front.JSON], self._model_list())
        else:
            return False
        return True

    def _model_list(self) -> bytes:
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "dualmap",
                "root": registration.model,
                "parent": None if name == registration.model else registration.model,
                "max_model_len": registration.max_model_len or None,
            }
            for name, registration in sorted(self._models().items())
        ]
        return msgspec.json.encode({"object": "list", "data": data})

    async def _explain(self, scope: Any, proto: Any) -> None:
        """A dry run: what would be decided for this body, and over what state."""
        if scope.method != "POST":
            raise ApiError(405, "POST the body of an inference request", code="method_not_allowed")
        options = parse_options(scope.headers.get)
        body = await front.read_body(scope, proto, self._settings.max_body_bytes)
        path = "/v1/chat/completions" if b'"messages"' in body else "/v1/completions"
        request = parse_inference(path, body)
        self._check_model(request.model)
        sink = self._answer(proto, False, path)
        flight = self._flight(scope, path, "explain", body, 0.0, request, options, sink)
        assert flight.prompt is not None
        report = await explain(self._placement, flight.prompt, flight.slo_s, flight.rule)
        front.send(proto, 200, [front.JSON], msgspec.json.encode(report))

    async def _passthrough(self, scope: Any, proto: Any, path: str, request_id: str) -> None:
        """Hand the request to any engine as it is."""
        inside = path.startswith(_ADMINISTRATION)
        if inside or not path.startswith(self._settings.passthrough) or ".." in path:
            raise ApiError(404, f"there is no {path} here", code="not_found")
        self._admit()
        body = await front.read_body(scope, proto, self._settings.max_body_bytes)
        flight = Flight(
            request_id=request_id,
            method=scope.method,
            path=front.engine_path(scope),
            headers=front.engine_headers(scope),
            body=body,
            started_s=time.monotonic(),
            sink=self._answer(proto, True, path),
        )
        await self._fly(flight, proto)


def _request_id(given: str | None) -> str:
    """The client's id if it is short and printable, since it goes into queues and telemetry; else a new one."""
    if given is not None and len(given) <= 128 and given.isascii() and given.isprintable() and given:
        return given
    return secrets.token_hex(16)


def _label(path: str) -> str:
    """A path as a metric label: outsiders cannot make up new ones."""
    return path if path in INFERENCE_PATHS else "other"
