"""/v1/chat/completions and /v1/completions: plan the answer, let the model time it, write it as vLLM does."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from dualmap_sim.engine.errors import ApiError
from dualmap_sim.engine.faults import RequestFault
from dualmap_sim.engine.plan import RequestPlan, plan_chat, plan_completion
from dualmap_sim.engine.protocol import ChatRequest, CompletionRequest, Sampling, decode_body
from dualmap_sim.engine.realtime import Delta, Generation, SimEngine
from dualmap_sim.engine.replies import DONE, ChatShape, CompletionShape, Shape, sse, usage
from dualmap_sim.engine.text import token_ids
from dualmap_sim.engine.transport import cut_connection, json_reply, open_stream, request_id_of

Plan = Callable[[bool], RequestPlan]


class GenerationApi:
    """The generating endpoints of one engine."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine

    def routes(self) -> list[web.RouteDef]:
        """The endpoints' routes."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
        ]

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        fault = await self.meet_faults(http)
        body = decode_body(http.content_type, await http.read(), ChatRequest)
        self.check_model(body.model)
        plan = plan_chat(body, self._engine.profile, garbage=fault.garbage)
        # The role of what follows: a new assistant message, or the message that is being continued.
        role = "assistant" if body.add_generation_prompt else str(body.messages[-1]["role"])
        shape = ChatShape(f"chatcmpl-{request_id_of(http)}", self._model_name(body), _now(), role, plan.tool)
        return await self._answer(http, body, plan, shape, fault)

    async def completions(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        fault = await self.meet_faults(http)
        body = decode_body(http.content_type, await http.read(), CompletionRequest)
        self.check_model(body.model)
        plan = plan_completion(body, self._engine.profile, garbage=fault.garbage)
        shape = CompletionShape(f"cmpl-{request_id_of(http)}", self._model_name(body), _now())
        return await self._answer(http, body, plan, shape, fault)

    async def meet_faults(self, http: web.Request) -> RequestFault:
        """Delay, fail or swallow a request as the engine's faults say."""
        settings = self._engine.faults.settings
        if settings.latency_ms:
            await asyncio.sleep(settings.latency_ms / 1000)
        fault = self._engine.faults.for_request()
        if fault.error is not None:
            self._engine.ledger.failed(request_id_of(http))
            raise fault.error
        if fault.hang:
            await http.read()
            # Never set: only the client's going away, or the engine's end, ends this.
            await asyncio.Event().wait()
        return fault

    def check_model(self, name: str | None) -> None:
        """Raise ApiError 404 unless that model, or adapter, is served."""
        spec = self._engine.spec
        if name and name != spec.model and name not in spec.loras:
            raise ApiError(404, "NotFoundError", f"The model `{name}` does not exist.", "model")

    def generate(self, http: web.Request, body: Sampling, plan: RequestPlan) -> Generation:
        """The plan's sequences in the engine."""
        lora = body.model if body.model in self._engine.spec.loras else ""
        salt = f"{lora}\n{body.cache_salt or ''}" if lora or body.cache_salt else ""
        outputs = [(choice.output, choice.num_tokens, choice.finish) for choice in plan.choices]
        session = http.headers.get("X-Session-ID")
        return self._engine.generate(request_id_of(http), plan.prompt, outputs, salt, session)

    def _model_name(self, body: Sampling) -> str:
        return body.model or self._engine.spec.model

    async def _answer(
        self, http: web.Request, body: Sampling, plan: RequestPlan, shape: Shape, fault: RequestFault
    ) -> web.StreamResponse:
        with self.generate(http, body, plan) as generation:
            if body.stream:
                reply = await open_stream(http)
                writer = _StreamWriter(http, reply, body, plan, shape, generation)
                await writer.run(fault.die_after_tokens)
            else:
                reply = await self._whole(http, body, plan, shape, generation, fault.die_after_tokens)
            generation.answered = True
        return reply

    async def _whole(
        self,
        http: web.Request,
        body: Sampling,
        plan: RequestPlan,
        shape: Shape,
        generation: Generation,
        die_after: int | None,
    ) -> web.StreamResponse:
        async for _ in generation.deltas():
            if die_after is not None and sum(generation.produced) >= die_after:
                await cut_connection(http)
        prompt_ids = token_ids(plan.prompt) if body.return_token_ids else None
        rows = []
        for index, choice in enumerate(plan.choices):
            tokens = choice.num_tokens
            ids = token_ids(choice.output.token_bytes(0, tokens)) if body.return_token_ids else None
            label, text = plan.finish_label(index), choice.text(0, tokens)
            rows.append(shape.row(index, text, ids, label, choice.stop_string, prompt_ids))
        counts = usage(generation.num_prompt_tokens, sum(generation.produced), generation.cached_tokens)
        return json_reply(shape.whole(rows, counts, prompt_ids))


class _StreamWriter:
    """Writes one request's stream."""

    def __init__(
        self,
        http: web.Request,
        reply: web.StreamResponse,
        body: Sampling,
        plan: RequestPlan,
        shape: Shape,
        generation: Generation,
    ) -> None:
        self._http = http
        self._reply = reply
        self._plan = plan
        self._shape = shape
        self._generation = generation
        self._with_ids = bool(body.return_token_ids)
        self._usage, self._usage_each = body.usage

    async def run(self, die_after: int | None) -> None:
        """Write the chunks as the tokens come, and the end; `die_after` tokens cut the connection."""
        opened = False
        sent_tokens = 0
        async for delta in self._generation.deltas():
            if not opened:
                opened = True
                await self._reply.write(self._opening())
            if die_after is not None:
                left = die_after - sent_tokens
                cut = Delta(delta.choice, delta.start, min(delta.stop, delta.start + left), None)
                if delta.stop - delta.start >= left:
                    if left > 0:
                        await self._reply.write(self._chunk(cut))
                    await cut_connection(self._http)
            await self._reply.write(self._chunk(delta))
            sent_tokens += delta.stop - delta.start
        tail = DONE
        if self._usage:
            counts = self._counts(sent_tokens, self._generation.cached_tokens)
            tail = sse(self._shape.usage_chunk(counts)) + DONE
        await self._reply.write(tail)
        await self._reply.write_eof()

    def _opening(self) -> bytes:
        prompt_ids = token_ids(self._plan.prompt) if self._with_ids else None
        chunks = [self._shape.opening(index, prompt_ids) for index in range(len(self._plan.choices))]
        return b"".join(sse(self._with_usage(chunk, 0)) for chunk in chunks if chunk is not None)

    def _chunk(self, delta: Delta) -> bytes:
        choice = self._plan.choices[delta.choice]
        text = choice.text(delta.start, delta.stop)
        ids = token_ids(choice.output.token_bytes(delta.start, delta.stop)) if self._with_ids else None
        finish = None if delta.finish is None else self._plan.finish_label(delta.choice)
        stop = choice.stop_string if finish else None
        chunk = self._shape.chunk(delta.choice, text, ids, delta.start == 0, finish, stop)
        return sse(self._with_usage(chunk, delta.stop))

    def _with_usage(self, chunk: dict[str, object], completion_tokens: int) -> dict[str, object]:
        if self._usage_each:
            chunk["usage"] = self._counts(completion_tokens, None)
        return chunk

    def _counts(self, completion_tokens: int, cached_tokens: int | None) -> dict[str, object]:
        return usage(self._generation.num_prompt_tokens, completion_tokens, cached_tokens)


def _now() -> int:
    return int(time.time())
