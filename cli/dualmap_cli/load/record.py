"""What the client saw of one request."""

from collections.abc import Mapping

import msgspec


class FailedTry(msgspec.Struct, frozen=True):
    """An error after which the client asked again."""

    error: str
    target: str
    """Who gave it."""
    at_s: float
    """Model seconds since the run began."""


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request's outcome; seconds are model seconds, `due_s` and `sent_s` since the run began.

    `error` is None for a full answer, else its kind: `connect`, `disconnected`, `timeout`, `http_<status>`,
    `cut` (the stream ended early), `stream_error` (an error event), `empty`, `wrong_text`. `finished` is
    False for a request that the end of the run took off.
    """

    request_id: str
    target: str
    due_s: float
    sent_s: float
    slo_s: float
    session: str | None = None
    tenant: str | None = None
    finished: bool = False
    status: int | None = None
    error: str | None = None
    detail: str | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    max_gap_s: float | None = None
    gaps: dict[int, int] = msgspec.field(default_factory=dict)
    events: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    duplicate: bool = False
    instance: str | None = None
    router: str | None = None
    reason: str | None = None
    candidates: list[str] = msgspec.field(default_factory=list)
    cached_chunks: int | None = None
    predicted_ttft_s: float | None = None
    moves: int = 0
    failed_tries: list[FailedTry] = msgspec.field(default_factory=list)

    @property
    def retried(self) -> list[str]:
        """The errors after which the client asked again."""
        return [one.error for one in self.failed_tries]

    @property
    def ok(self) -> bool:
        """A full answer came."""
        return self.finished and self.error is None

    @property
    def within_slo(self) -> bool:
        """A full answer came, and began in time."""
        return self.ok and self.ttft_s is not None and self.ttft_s <= self.slo_s

    def fail(self, kind: str, detail: str | None = None) -> None:
        """Note what went wrong; the first thing stays."""
        if self.error is None:
            self.error, self.detail = kind, detail

    def asked_again(self, target: str, failed_s: float) -> "RequestRecord":
        """The record of a further try; it keeps when the first one was due and sent.

        `failed_s` is when the last one came to nothing.
        """
        assert self.error is not None
        return RequestRecord(
            request_id=self.request_id,
            target=target,
            due_s=self.due_s,
            sent_s=self.sent_s,
            slo_s=self.slo_s,
            session=self.session,
            tenant=self.tenant,
            input_tokens=self.input_tokens,
            failed_tries=[*self.failed_tries, FailedTry(self.error, self.target, failed_s)],
        )

    def read_headers(self, headers: Mapping[str, str], time_scale: float) -> None:
        """Take what the router says about its decision; all of it may be missing."""
        self.instance = headers.get("x-dualmap-instance")
        self.router = headers.get("x-dualmap-router")
        self.reason = headers.get("x-dualmap-reason")
        self.candidates = [name for name in headers.get("x-dualmap-candidates", "").split(",") if name]
        self.cached_chunks = _whole(headers.get("x-dualmap-cached-chunks"))
        self.moves = _whole(headers.get("x-dualmap-moves")) or 0
        predicted_ms = _number(headers.get("x-dualmap-predicted-ttft-ms"))
        self.predicted_ttft_s = None if predicted_ms is None else predicted_ms / 1000 * time_scale

    def read_usage(self, usage: Mapping[str, object]) -> None:
        """Take the engine's token counts where it gives them."""
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int):
            self.input_tokens = prompt
            details = usage.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            self.cached_tokens = cached if isinstance(cached, int) else None
        if isinstance(completion, int):
            self.output_tokens = completion


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None
