"""/v1/responses, as far as a client that sends text and reads text needs it."""

import time
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from dualmap_sim.engine.errors import validation_error
from dualmap_sim.engine.generation_api import GenerationApi
from dualmap_sim.engine.plan import RequestPlan, plan_chat
from dualmap_sim.engine.protocol import ChatRequest, decode_body
from dualmap_sim.engine.realtime import Generation, SimEngine
from dualmap_sim.engine.transport import cut_connection, json_reply, open_stream, request_id_of

_JSON = msgspec.json.Encoder()


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/responses."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    cache_salt: str | None = None

    def as_chat(self) -> ChatRequest:
        """The chat that this stands for."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for index, item in enumerate(self.input):
                if item.get("type", "message") != "message":
                    raise validation_error("Only messages are supported", f"body.input.{index}")
                messages.append({"role": item.get("role", "user"), "content": item.get("content")})
        return ChatRequest(
            messages=messages,
            model=self.model,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            cache_salt=self.cache_salt,
        )


class ResponsesApi:
    """The responses endpoint of one engine."""

    def __init__(self, engine: SimEngine, generation: GenerationApi) -> None:
        self._engine = engine
        self._generation = generation

    def routes(self) -> list[web.RouteDef]:
        """The endpoint's routes."""
        return [web.post("/v1/responses", self.create)]

    async def create(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/responses."""
        fault = await self._generation.meet_faults(http)
        body = decode_body(http.content_type, await http.read(), ResponsesRequest)
        self._generation.check_model(body.model)
        chat = body.as_chat()
        plan = plan_chat(chat, self._engine.profile, garbage=fault.garbage)
        shape = _Shape(f"resp_{request_id_of(http)}", body, body.model or self._engine.spec.model)
        with self._generation.generate(http, chat, plan) as generation:
            if body.stream:
                reply = await open_stream(http)
                await reply.write(b"".join(shape.opening()))
            async for delta in generation.deltas():
                if fault.die_after_tokens is not None and delta.stop >= fault.die_after_tokens:
                    await cut_connection(http)
                if body.stream:
                    await reply.write(shape.delta(plan.choices[0].text(delta.start, delta.stop)))
            if body.stream:
                await reply.write(b"".join(shape.closing(plan, generation)))
                await reply.write_eof()
            generation.answered = True
        return reply if body.stream else json_reply(shape.response("completed", plan, generation))


class _Shape:
    """The response object and the events of its stream."""

    def __init__(self, reply_id: str, body: ResponsesRequest, model: str) -> None:
        self._id = reply_id
        self._item_id = f"msg_{reply_id}"
        self._created = int(time.time())
        self._body = body
        self._model = model
        self._sequence = -1

    def response(
        self, status: str, plan: RequestPlan | None = None, generation: Generation | None = None
    ) -> dict[str, Any]:
        """The response object, with its output once there is one."""
        output, usage = [], None
        if plan is not None and generation is not None:
            output = [self._item("completed", plan.choices[0].text(0, plan.choices[0].num_tokens))]
            produced, prompt_tokens = sum(generation.produced), generation.num_prompt_tokens
            usage = {
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": generation.cached_tokens},
                "output_tokens": produced,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt_tokens + produced,
            }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": output,
            "instructions": self._body.instructions,
            "max_output_tokens": self._body.max_output_tokens,
            "temperature": self._body.temperature,
            "top_p": self._body.top_p,
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "usage": usage,
        }

    def opening(self) -> Iterator[bytes]:
        """The events before the first text."""
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))
        item = {**self._item("in_progress", ""), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=_part(""))

    def delta(self, text: str) -> bytes:
        """The event of some new text."""
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def closing(self, plan: RequestPlan, generation: Generation) -> Iterator[bytes]:
        """The events after the last text."""
        text = plan.choices[0].text(0, plan.choices[0].num_tokens)
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_part(text))
        item = self._item("completed", text)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event("response.completed", response=self.response("completed", plan, generation))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, text: str) -> dict[str, Any]:
        item = {"id": self._item_id, "type": "message", "role": "assistant"}
        return {**item, "status": status, "content": [_part(text)]}

    def _event(self, name: str, **fields: Any) -> bytes:
        self._sequence += 1
        data = _JSON.encode({"type": name, "sequence_number": self._sequence, **fields})
        return f"event: {name}\ndata: ".encode() + data + b"\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
