"""The endpoints that generate nothing: models, health, metrics, tokenizer, embeddings."""

import time
from typing import Any

import msgspec
import xxhash
from aiohttp import web

from dualmap_sim.engine.canonical import chat_prompt, completion_prompt
from dualmap_sim.engine.errors import bad_request, validation_error
from dualmap_sim.engine.generation_api import GenerationApi
from dualmap_sim.engine.metrics import exposition, metrics_registry
from dualmap_sim.engine.protocol import decode_body
from dualmap_sim.engine.realtime import SimEngine
from dualmap_sim.engine.render_api import token_ids_json
from dualmap_sim.engine.replies import usage
from dualmap_sim.engine.text import BYTES_PER_TOKEN, decode, encode, from_token_ids, token_ids
from dualmap_sim.engine.transport import json_reply, request_id_of

_DIMENSIONS = 16
_VERSION = "0.32.0+simulated"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /tokenize: a prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of /detokenize."""

    tokens: list[int]
    model: str | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/embeddings."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: str = "float"


class ServiceApi:
    """The non-generating endpoints of one engine."""

    def __init__(self, engine: SimEngine, generation: GenerationApi) -> None:
        self._engine = engine
        self._generation = generation
        self._registry = metrics_registry(engine)
        self._started = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        """The endpoints' routes."""
        return [
            web.get("/health", self.health),
            web.get("/ping", self.health),
            web.get("/version", self.version),
            web.get("/metrics", self.metrics),
            web.get("/v1/models", self.models),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
            web.post("/v1/embeddings", self.embeddings),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """GET /health."""
        return web.Response(status=503 if self._engine.faults.settings.unhealthy else 200)

    async def version(self, _: web.Request) -> web.Response:
        """GET /version."""
        return json_reply({"version": _VERSION})

    async def metrics(self, _: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(body=exposition(self._registry), headers={"Content-Type": _METRICS_TYPE})

    async def models(self, _: web.Request) -> web.Response:
        """GET /v1/models: the model and its adapters."""
        spec, limit = self._engine.spec, self._engine.profile.context_limit_tokens
        cards = [self._card(spec.model, None, limit)]
        cards += [self._card(name, spec.model, None) for name in spec.loras]
        return json_reply({"object": "list", "data": cards})

    async def tokenize(self, http: web.Request) -> web.Response:
        """POST /tokenize."""
        body = decode_body(http.content_type, await http.read(), TokenizeRequest)
        self._generation.check_model(body.model)
        if body.messages is not None:
            text = chat_prompt(
                body.messages,
                body.tools,
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
            )
        elif body.prompt is not None:
            text = completion_prompt(body.prompt)
        else:
            raise validation_error("Field required: prompt", "body.prompt")
        tokens = encode(text)
        ids = token_ids(tokens) if body.return_token_strs else ()
        strings = [decode(from_token_ids([token])) for token in ids] if body.return_token_strs else None
        return json_reply(
            {
                "count": len(tokens) // BYTES_PER_TOKEN,
                "max_model_len": self._engine.profile.context_limit_tokens,
                "tokens": token_ids_json(tokens),
                "token_strs": strings,
            }
        )

    async def detokenize(self, http: web.Request) -> web.Response:
        """POST /detokenize."""
        body = decode_body(http.content_type, await http.read(), DetokenizeRequest)
        return json_reply({"prompt": decode(_tokens(body.tokens))})

    async def embeddings(self, http: web.Request) -> web.Response:
        """POST /v1/embeddings: vectors that depend on the input alone."""
        await self._generation.meet_faults(http)
        body = decode_body(http.content_type, await http.read(), EmbeddingRequest)
        self._generation.check_model(body.model)
        if body.encoding_format != "float":
            raise bad_request("Only encoding_format 'float' is supported.", "encoding_format")
        inputs = _embedding_inputs(body.input)
        rows = [
            {"index": index, "object": "embedding", "embedding": _vector(tokens)}
            for index, tokens in enumerate(inputs)
        ]
        num_tokens = sum(len(tokens) // BYTES_PER_TOKEN for tokens in inputs)
        return json_reply(
            {
                "id": f"embd-{request_id_of(http)}",
                "object": "list",
                "created": int(time.time()),
                "model": body.model or self._engine.spec.model,
                "data": rows,
                "usage": usage(num_tokens, 0),
            }
        )

    def _card(self, name: str, parent: str | None, limit: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": limit,
            "permission": [],
        }


def _tokens(ids: list[Any]) -> bytes:
    try:
        return from_token_ids(ids)
    except (OverflowError, TypeError) as error:
        raise bad_request("A token id is out of vocabulary.", "input") from error


def _embedding_inputs(given: str | list[Any]) -> list[bytes]:
    if not given:
        raise bad_request("The input must not be empty.", "input")
    if isinstance(given, str):
        return [encode(given.encode())]
    if isinstance(given[0], int):
        return [_tokens(given)]
    return [encode(item.encode()) if isinstance(item, str) else _tokens(item) for item in given]


def _vector(tokens: bytes) -> list[float]:
    hashes = [xxhash.xxh3_64_intdigest(tokens, seed) for seed in range(_DIMENSIONS)]
    values = [value / 2**63 - 1.0 for value in hashes]
    norm: float = sum(value * value for value in values) ** 0.5
    return [value / norm for value in values]
