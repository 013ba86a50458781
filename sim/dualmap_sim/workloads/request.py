"""One request of a workload: when it comes and what it asks, with its text made only on demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from dualmap_sim.workloads.text import Span

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"


class Message(NamedTuple):
    """One chat message; its content is the spans' text joined."""

    role: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request due `at_s` after the workload starts; either `messages` or `prompt` is set.

    `slo_ttft_s` is the request's own objective in model seconds; None leaves it to the pool. `adapter` is a name
    for whoever sends the request: `body` asks for the model that it is given.
    """

    at_s: float
    request_id: str
    output_tokens: int
    messages: tuple[Message, ...] = ()
    prompt: tuple[Span, ...] = ()
    session: str | None = None
    tenant: str | None = None
    adapter: str | None = None
    slo_ttft_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The OpenAI endpoint that takes this request."""
        return CHAT_PATH if self.messages else COMPLETIONS_PATH

    @property
    def input_tokens(self) -> int:
        """Prompt tokens at four bytes a token, without what a chat template adds."""
        return sum(span.tokens for span in self.spans())

    def spans(self) -> Iterator[Span]:
        """The prompt's spans in order, whatever the endpoint."""
        yield from self.prompt
        for message in self.messages:
            yield from message.spans

    def body(self, model: str, *, stream: bool = True, extra: Mapping[str, Any] | None = None) -> bytes:
        """The JSON body; the text is made here and not kept."""
        fields: dict[str, Any] = {"model": model}
        if self.messages:
            fields["messages"] = [{"role": role, "content": _text(spans)} for role, spans in self.messages]
        else:
            fields["prompt"] = _text(self.prompt)
        fields["max_tokens"] = self.output_tokens
        fields["stream"] = stream
        if stream:
            fields["stream_options"] = {"include_usage": True}
        if self.tenant is not None:
            fields["user"] = self.tenant
        fields.update(extra or {})
        return msgspec.json.encode(fields)


def _text(spans: tuple[Span, ...]) -> str:
    return "".join([span.text() for span in spans])
