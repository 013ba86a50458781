"""What a router answers without an engine: whether it lives and is ready, its metrics, the models of its pool."""

from collections.abc import Callable
from typing import Any

import msgspec

from dualmap_router.http_message import JSON, HttpRequest, HttpResponse
from dualmap_router.metrics import RouterMetrics
from dualmap_router.models import Models


class LocalPages:
    """Answers a few paths by itself."""

    def __init__(
        self,
        open_metrics: bool,
        metrics: RouterMetrics,
        models: Models,
        state: Callable[[], dict[str, Any]],
    ) -> None:
        """`state` is what /readyz says; metrics that are not open are for administrators."""
        self._open_metrics = open_metrics
        self._metrics = metrics
        self._models = models
        self._state = state

    def answer(self, request: HttpRequest, response: HttpResponse) -> bool:
        """Answer what needs no engine; false when the path is something else."""
        if request.method not in ("GET", "HEAD"):
            return False
        path = request.path
        if path == "/healthz":
            response.send(200, [JSON], b'{"status":"ok"}')
        elif path == "/readyz":
            state = self._state()
            response.send(200 if state["ready"] else 503, [JSON], msgspec.json.encode(state))
        elif path == "/metrics":
            if not self._open_metrics:
                request.caller.check_admin()
            text, content_type = self._metrics.render(request.get("accept") or "")
            response.send(200, [("content-type", content_type)], text)
        elif path == "/v1/models":
            response.send(200, [JSON], self._models.listing())
        else:
            return False
        return True
