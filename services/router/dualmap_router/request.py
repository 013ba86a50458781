"""What the router reads of a request: the model, the canonical prompt, and who waits for it.

The body itself travels on as it came. The canonical prompt is tools, then each message's role and content
in order, as the client's JSON has them: two requests share a prefix exactly when their leading bytes agree.
Token-id prompts are four bytes per token; images and the like have stand-ins (`media`). Everything else about
the body is the engine's to judge.
"""

from array import array
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from dualmap.choose import POLICIES
from dualmap_router.errors import ApiError, bad_request
from dualmap_router.media import without_media

_TokenId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Named(msgspec.Struct):
    model: str | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    cache_salt: str | None = None
    priority: _Int64 | None = None


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Chat(_Common, kw_only=True):
    messages: list[_Message]
    tools: msgspec.Raw = msgspec.Raw(b"")


class _Completion(_Common, kw_only=True):
    prompt: str | list[_TokenId | str | list[_TokenId]] | None = None
    prompt_embeds: msgspec.Raw = msgspec.Raw(b"")


class _Loose(_Common, kw_only=True):
    """Other inference bodies: what is there of these fields is the prompt."""

    instructions: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


_named = msgspec.json.Decoder(_Named)
_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_loose = msgspec.json.Decoder(_Loose)


class InferenceRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that needs a prefill."""

    model: str | None
    stream: bool
    wants_usage: bool
    """The client asked for usage in its stream."""
    has_stream_options: bool
    prompt: bytes
    """The canonical prompt."""
    prompt_tokens: int | None
    """Known for token-id prompts only."""
    cache_salt: str
    priority: int
    num_media: int = 0
    """Stand-ins for images and the like in the canonical prompt."""


class Options(msgspec.Struct, frozen=True, gc=False):
    """What the request headers ask of the router."""

    slo_s: float | None
    priority: int | None
    prefix_key: str | None
    policy: str | None
    resume: bool
    """Whether a stream whose engine dies may be continued by another."""


def parse_options(get: Callable[[str], str | None]) -> Options:
    """The `x-dualmap-*` request headers; ApiError 400 names the one that is wrong."""
    slo_ms = _number(get, "x-dualmap-slo-ttft-ms", float)
    if slo_ms is not None and not 0.0 < slo_ms < 1e9:
        raise bad_request(
            "x-dualmap-slo-ttft-ms must be a positive number of milliseconds", "x-dualmap-slo-ttft-ms"
        )
    priority = _number(get, "x-dualmap-priority", int)
    if priority is not None and not -(2**31) <= priority < 2**31:
        raise bad_request("x-dualmap-priority must fit 32 bits", "x-dualmap-priority")
    if priority is None:
        priority = _vllm_priority(get("x-vllm-priority"))
    policy = get("x-dualmap-policy")
    if policy is not None and policy not in POLICIES:
        raise bad_request(f"x-dualmap-policy must be one of {', '.join(POLICIES)}", "x-dualmap-policy")
    prefix_key = get("x-dualmap-prefix-key")
    if prefix_key is not None and not 0 < len(prefix_key) <= 512:
        raise bad_request("x-dualmap-prefix-key must have 1 to 512 characters", "x-dualmap-prefix-key")
    resume = get("x-dualmap-resume")
    if resume not in (None, "on", "off"):
        raise bad_request("x-dualmap-resume must be on or off", "x-dualmap-resume")
    return Options(None if slo_ms is None else slo_ms / 1e3, priority, prefix_key, policy, resume != "off")


def _vllm_priority(text: str | None) -> int | None:
    """vLLM's own header orders our queue as well; like vLLM, it overlooks what is no number."""
    try:
        return None if text is None else _queue_priority(int(text))
    except ValueError:
        return None


def _number(get: Callable[[str], str | None], name: str, kind: Callable[[str], Any]) -> Any:
    text = get(name)
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise bad_request(f"{name} must be a number, not {text[:40]!r}", name) from None


def model_of(body: bytes) -> str | None:
    """The model that any body names; None when it names none or is not JSON."""
    try:
        return _named.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def parse_inference(path: str, body: bytes) -> InferenceRequest:
    """Decode the body of an inference endpoint; ApiError 400 says what is wrong with it."""
    try:
        if path == "/v1/chat/completions":
            return _parse_chat(body)
        if path == "/v1/completions":
            return _parse_completion(body)
        return _parse_loose(body)
    except msgspec.ValidationError as exc:
        raise bad_request(f"invalid request body: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ApiError(400, f"the request body is not valid JSON: {exc}", code="invalid_json") from exc


def _parse_chat(body: bytes) -> InferenceRequest:
    chat = _chat.decode(body)
    if not chat.messages:
        raise bad_request("messages must not be empty", "messages")
    parts: list[bytes | memoryview] = [memoryview(chat.tools)]
    num_media = 0
    for index, message in enumerate(chat.messages):
        content: bytes | memoryview = memoryview(message.content)
        if content[0] == ord("["):
            content, num_found = without_media(message.content)
            num_media += num_found
        elif content[0] not in b'"n':
            raise bad_request(
                f"messages[{index}].content must be a string, a list of parts or null", "messages"
            )
        parts += (b"\x1e", message.role.encode(), b"\x1f", content, memoryview(message.tool_calls))
    return _request(chat, b"".join(parts), None, num_media)


def _parse_completion(body: bytes) -> InferenceRequest:
    completion = _completion.decode(body)
    prompt = completion.prompt
    if prompt is None and len(completion.prompt_embeds):
        return _request(completion, bytes(completion.prompt_embeds), None)
    if not prompt or prompt == [""]:
        raise bad_request("prompt must not be empty", "prompt")
    if isinstance(prompt, str):
        return _request(completion, prompt.encode("utf-8", "surrogatepass"), None)
    texts = [part for part in prompt if isinstance(part, str)]
    if texts:
        if len(texts) != len(prompt):
            raise bad_request("prompt must not mix text and token ids", "prompt")
        return _request(completion, "\x1e".join(texts).encode("utf-8", "surrogatepass"), None)
    ids: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            ids.append(part)
        elif isinstance(part, list):
            ids += part
    if not ids:
        raise bad_request("prompt must not be empty", "prompt")
    return _request(completion, array("I", ids).tobytes(), len(ids))


def _parse_loose(body: bytes) -> InferenceRequest:
    loose = _loose.decode(body)
    messages, in_messages = without_media(loose.messages)
    given, in_input = without_media(loose.input)
    texts = (memoryview(text) for text in (loose.tools, loose.instructions, loose.system))
    prompt = b"\x1e".join(part for part in (*texts, messages, given) if len(part))
    return _request(loose, prompt, None, in_messages + in_input)


def _queue_priority(value: int) -> int:
    """Engines take 64 bits, the wire 32: what is beyond comes first or last."""
    return max(-(2**31), min(value, 2**31 - 1))


def _request(
    common: _Common, prompt: bytes, prompt_tokens: int | None, num_media: int = 0
) -> InferenceRequest:
    options = common.stream_options
    return InferenceRequest(
        model=common.model,
        stream=bool(common.stream),
        wants_usage=bool(options and options.include_usage),
        has_stream_options=options is not None,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        cache_salt=common.cache_salt or "",
        priority=_queue_priority(common.priority or 0),
        num_media=num_media,
    )
