"""Request logs of OpenAI-compatible servers: one JSON object a line, with a body and when it came."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dualmap.prefix import prefix_seed
from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.importing.prompts import LoggedMessage, block_ids, chat_bytes, prompt_bytes
from dualmap_sim.workloads.importing.salted import Salted
from dualmap_sim.workloads.importing.stamps import epoch_ms
from dualmap_sim.workloads.text import BLOCK_TOKENS, BYTES_PER_TOKEN
from dualmap_sim.workloads.trace_line import MAX_TOKENS, TraceLine

_BODIES = ("request", "body", "params")
_STAMPS = ("timestamp", "created", "time", "ts", "@timestamp", "created_at", "start_time")
_SESSIONS = ("session", "session_id", "conversation_id", "conversation", "thread_id")
_OUTPUT_TOKENS = 200
"""Taken for an answer of which the log says nothing; the report counts how often."""
_MAX_NAMES = 1000

Raw = msgspec.Raw
Fields = Mapping[str, Raw]


class _Body(msgspec.Struct):
    messages: list[LoggedMessage] = []
    prompt: str | list[Any] | None = None
    input: Raw = Raw(b"")
    tools: Raw = Raw(b"")
    instructions: Raw = Raw(b"")
    system: Raw = Raw(b"")
    model: str | None = None
    user: str | None = None
    cache_salt: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Of chats and completions, or of responses and Anthropic's messages."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


_fields = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_any = msgspec.json.Decoder()
_body = msgspec.json.Decoder(_Body)
_usage = msgspec.json.Decoder(_Usage)


class OpenAiLog:
    """Reads the lines of a log; counts what it had to guess."""

    def __init__(
        self, salted: Salted, bytes_per_token: float, keep_names: bool, models: Iterable[str]
    ) -> None:
        self._salted = salted
        self._bytes_per_token = bytes_per_token
        self._keep_names = keep_names
        self._wanted = frozenset(models)
        self.models: Counter[str] = Counter()
        self.guessed_outputs = 0
        self.known_bytes = 0
        self.known_tokens = 0

    def parse(self, raw: bytes) -> TraceLine | None:
        """One line as a request, its timestamp as the log has it; None for another model's."""
        try:
            return self._parse(raw)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise LineError(str(error)) from error

    def _parse(self, raw: bytes) -> TraceLine | None:
        record = _fields.decode(raw)
        packed = _find_body(record)
        body = _body.decode(packed)
        fields = _fields.decode(packed)
        if self._wanted and body.model not in self._wanted:
            return None
        answer = _object(record.get("response")) or {}
        answer = _object(answer.get("body")) or answer
        usage = _decode_usage(record.get("usage") or answer.get("usage"))
        input_tokens, ids = self._blocks(body, usage)
        line = TraceLine(
            timestamp=_stamp(record, fields, answer),
            input_length=input_tokens,
            output_length=self._output_tokens(body, usage),
            hash_ids=ids,
            tenant=self._name(body.user),
            session=self._name(_session(record, fields)),
            adapter=_named(record, ("adapter",)),
            slo_s=None if "slo_s" not in record else msgspec.json.decode(record["slo_s"], type=float),
        )
        if body.model is not None and (body.model in self.models or len(self.models) < _MAX_NAMES):
            self.models[body.model] += 1
        return line

    def _blocks(self, body: _Body, usage: _Usage) -> tuple[int, list[int]]:
        prompt, exact = _canonical(body)
        if not prompt:
            raise LineError("the request has no messages and no prompt")
        # Models do not share a cache, nor do requests with different salts.
        seed = prefix_seed(body.model or "", "", body.cache_salt or "", self._salted.seed)
        # Token ids are four bytes each, whatever the text of a token takes.
        bytes_per_token = BYTES_PER_TOKEN if exact else self._bytes_per_token
        tokens = usage.prompt_tokens or usage.input_tokens or exact
        if tokens is None:
            tokens = max(1, round(len(prompt) / bytes_per_token))
        elif exact is None:
            self.known_bytes += len(prompt)
            self.known_tokens += tokens
        if not 1 <= tokens <= MAX_TOKENS:
            raise LineError(f"a prompt of {tokens} tokens")
        return tokens, block_ids(prompt, tokens, round(BLOCK_TOKENS * bytes_per_token), seed, self._salted)

    def _output_tokens(self, body: _Body, usage: _Usage) -> int:
        for tokens in (usage.completion_tokens, usage.output_tokens):
            if tokens is not None:
                return max(1, tokens)
        self.guessed_outputs += 1
        limit = body.max_completion_tokens or body.max_tokens
        # A limit says how long an answer could get, and is often far above any that came.
        return max(1, min(limit, 4096)) if limit else _OUTPUT_TOKENS

    def _name(self, name: str | None) -> str | None:
        return name if name is None or self._keep_names else self._salted.name(name)


def _find_body(record: Fields) -> bytes:
    if "messages" in record or "prompt" in record:
        return msgspec.json.encode(record)
    for name in _BODIES:
        raw = bytes(record.get(name, b""))
        if raw.startswith(b'"'):
            raw = _text.decode(raw).encode()
        if raw.lstrip().startswith(b"{"):
            # A logger may wrap an HTTP request, which has its body within.
            inner = _fields.decode(raw).get("body")
            return bytes(inner) if inner is not None and bytes(inner).startswith(b"{") else raw
    if "input" in record:
        return msgspec.json.encode(record)
    raise LineError("no request body: neither messages or prompt, nor one under request, body or params")


def _canonical(body: _Body) -> tuple[bytes, int | None]:
    if body.prompt:
        return prompt_bytes(body.prompt)
    messages = list(body.messages)
    if len(body.input):
        messages.append(LoggedMessage("", body.input))
    if not messages:
        return b"", None
    return chat_bytes((body.tools, body.instructions, body.system), messages), None


def _stamp(*places: Fields) -> float:
    for fields in places:
        for name in _STAMPS:
            if name in fields and bytes(fields[name]) != b"null":
                return epoch_ms(_any.decode(fields[name]))
    raise LineError(f"no time: none of {', '.join(_STAMPS)}")


def _session(record: Fields, body: Fields) -> str | None:
    metadata = _object(body.get("metadata")) or {}
    return _named(record, _SESSIONS) or _named(body, _SESSIONS) or _named(metadata, _SESSIONS)


def _named(fields: Fields, names: Iterable[str]) -> str | None:
    """The first of these fields that is a text or a whole number."""
    for name in names:
        value = _any.decode(fields[name]) if name in fields else None
        if isinstance(value, str | int) and value != "":
            return str(value)
    return None


def _object(raw: Raw | None) -> Fields | None:
    return _fields.decode(raw) if raw is not None and bytes(raw).startswith(b"{") else None


def _decode_usage(raw: Raw | None) -> _Usage:
    return _usage.decode(raw) if raw is not None and bytes(raw).startswith(b"{") else _Usage()
