"""One request to DualMap and to a vLLM behind it, and what of the two answers has to agree."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

# Made anew for each answer, or about what was cached when it was made.
_OF_THE_MOMENT = frozenset(
    (
        "id", "item_id", "call_id", "created", "created_at", "completed_at", "system_fingerprint",
        "prompt_tokens_details", "input_tokens_details", "input_tokens", "cache_read_input_tokens",
        "cache_creation_input_tokens",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """The data of an event stream, without its end mark."""
        lines = [line[len("data: ") :] for line in self.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def is_stream(self) -> bool:
        """Whether it came as events."""
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def lasting(self) -> Any:
        """What another answer to the same request says as well."""
        if not self.is_stream:
            return _lasting(self.json)
        ended = self.text.rstrip().endswith("data: [DONE]")
        return ended, gathered(self.events) if "choices" in self.events[0] else _kinds(self.events)


class Ask:
    """Sends requests both ways."""

    def __init__(self, http: aiohttp.ClientSession, routers: list[str], engines: list[str]) -> None:
        self._http = http
        self._routers = itertools.cycle(routers)
        self.engines = engines

    async def routed(self, path: str, body: Any = None, **headers: str) -> Reply:
        """What DualMap answers, by each router in turn; `_` in a header's name is `-`."""
        return await self._send(next(self._routers) + path, body, headers)

    async def direct(self, path: str, body: Any = None, engine: int = 0, **headers: str) -> Reply:
        """What a vLLM answers."""
        return await self._send(self.engines[engine] + path, body, headers)

    async def same(self, path: str, body: Any = None, **headers: str) -> Reply:
        """DualMap's answer, which must be vLLM's."""
        expected = await self.direct(path, body, **headers)
        reply = await self.routed(path, body, **headers)
        assert (reply.status, reply.headers["content-type"]) == (
            expected.status,
            expected.headers["content-type"],
        ), reply.text
        assert reply.lasting == expected.lasting
        return reply

    async def _send(self, url: str, body: Any, headers: dict[str, str]) -> Reply:
        method = "GET" if body is None else "POST"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._http.request(method, url, data=data, headers=sent) as answer:
            text = await answer.text()
            return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, text)


def gathered(events: list[Any]) -> dict[str, Any]:
    """A stream of chunks as what it adds up to, since tokens come in chunks of any size."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for part in event["choices"]:
            choice = choices.setdefault(
                part["index"], {"text": "", "ids": [], "prompt_ids": [], "tools": {}, "end": None}
            )
            delta = part.get("delta") or {}
            choice["text"] += part.get("text") or delta.get("content") or ""
            choice["ids"] += part.get("token_ids") or []
            choice["prompt_ids"] += part.get("prompt_token_ids") or []
            choice["end"] = part["finish_reason"] or choice["end"]
            for call in delta.get("tool_calls") or ():
                tool = choice["tools"].setdefault(call["index"], {"name": "", "arguments": ""})
                for name in tool:
                    tool[name] += call["function"].get(name) or ""
    return {"choices": choices, "usage": _lasting(usage)}


def _kinds(events: list[Any]) -> Any:
    """A stream of typed events: their types in order, runs of one as one; the text; the last of them."""
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
    text = ""
    for event in events:
        delta = event.get("delta", "")
        text += delta if isinstance(delta, str) else delta.get("text", "")
    last = {name: value for name, value in events[-1].items() if name != "sequence_number"}
    return kinds, text, _lasting(last)


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(inner) for name, inner in value.items() if name not in _OF_THE_MOMENT}
    if isinstance(value, list):
        return [_lasting(inner) for inner in value]
    # Other sums of the same numbers, when other requests share the batch.
    return round(value, 3) if isinstance(value, float) else value
