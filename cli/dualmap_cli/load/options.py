"""What a load run is asked to do."""

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dualmap_sim.workloads import TimedRequest

Check = Callable[[TimedRequest, str], bool]


class LoadError(ValueError):
    """A load run cannot be done as asked; the message names the value at fault."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The TTFT objective in model seconds, which may grow with the prompt."""

    ttft_s: float = 5.0
    per_1k_tokens_s: float = 0.0

    def limit_s(self, request: TimedRequest) -> float:
        """The objective for this request; its own comes first."""
        if request.slo_ttft_s is not None:
            return request.slo_ttft_s
        return self.ttft_s + self.per_1k_tokens_s * request.input_tokens / 1000


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to replay; seconds are model seconds: real seconds times `time_scale`.

    `send_slo` puts each request's objective into its `x-dualmap-slo-ttft-ms` header (real milliseconds);
    a request that carries its own objective always sends it. A request that gets no answer, or only part of one,
    because its connection ends is sent again up to `retries` times, each time to the next URL.
    """

    model: str = "model"
    stream: bool = True
    time_scale: float = 1.0
    max_in_flight: int = 4096
    timeout_s: float = 600.0
    retries: int = 0
    slo: Slo = field(default_factory=Slo)
    send_slo: bool = False
    api_key: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = None
    progress_interval_s: float = 1.0
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __post_init__(self) -> None:
        for name in ("time_scale", "timeout_s", "max_in_flight", "progress_interval_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise LoadError(f"{name} must be above 0, not {value}")
        if self.retries < 0:
            raise LoadError(f"retries must be at least 0, not {self.retries}")

    def headers(self, request: TimedRequest) -> dict[str, str]:
        """The headers of one request; its id is unique to this run."""
        headers = {
            "content-type": "application/json",
            "x-request-id": f"{self.run_id}-{request.request_id}",
            **dict(request.headers),
        }
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        if self.send_slo or request.slo_ttft_s is not None:
            headers["x-dualmap-slo-ttft-ms"] = f"{self.slo.limit_s(request) * 1000 / self.time_scale:.0f}"
        return headers


def check_target(url: str) -> str:
    """A base URL without its trailing slash and `/v1`, which request paths bring along."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise LoadError(f"not an http(s) URL: {url!r}")
    return url.rstrip("/").removesuffix("/v1")
