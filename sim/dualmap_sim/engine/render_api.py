"""What a request becomes before it runs: vLLM's render endpoints, which routers ask for a prompt's token ids."""

from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import web

from dualmap_sim.engine.generation_api import GenerationApi
from dualmap_sim.engine.plan import plan_chat, plan_completion
from dualmap_sim.engine.protocol import ChatRequest, CompletionRequest, Sampling, decode_body
from dualmap_sim.engine.realtime import SimEngine
from dualmap_sim.engine.text import token_ids
from dualmap_sim.engine.transport import json_reply, request_id_of


class RenderApi:
    """The rendering endpoints of one engine."""

    def __init__(self, engine: SimEngine, generation: GenerationApi) -> None:
        self._engine = engine
        self._generation = generation

    def routes(self) -> list[web.RouteDef]:
        """The endpoints' routes."""
        return [
            web.post("/v1/chat/completions/render", self.chat),
            web.post("/v1/completions/render", self.completions),
        ]

    async def chat(self, http: web.Request) -> web.Response:
        """POST /v1/chat/completions/render: one request for the engine."""
        body = decode_body(http.content_type, await http.read(), ChatRequest)
        self._generation.check_model(body.model)
        plan = plan_chat(body, self._engine.profile)
        return json_reply(self._rendered(f"chatcmpl-{request_id_of(http)}", body, plan.prompt))

    async def completions(self, http: web.Request) -> web.Response:
        """POST /v1/completions/render: a list of such requests, one per prompt."""
        body = decode_body(http.content_type, await http.read(), CompletionRequest)
        self._generation.check_model(body.model)
        plan = plan_completion(body, self._engine.profile)
        return json_reply([self._rendered(f"cmpl-{request_id_of(http)}", body, plan.prompt)])

    def _rendered(self, request_id: str, body: Sampling, prompt: bytes) -> dict[str, Any]:
        return {
            "request_id": request_id,
            "token_ids": token_ids_json(prompt),
            "sampling_params": {"n": body.num_choices, "max_tokens": body.max_tokens},
            "model": body.model or self._engine.spec.model,
            "stream": bool(body.stream),
            "cache_salt": body.cache_salt,
            "priority": 0,
        }


@lru_cache(maxsize=8)
def token_ids_json(tokens: bytes) -> msgspec.Raw:
    """The ids as JSON; kept for a moment, since a router asks every engine the same."""
    return msgspec.Raw(msgspec.json.encode(token_ids(tokens)))
