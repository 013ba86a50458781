"""The resumer: prepares a flight whose stream broke off to go on with another instance."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dualmap_router.continuation import (
    Splice,
    can_continue,
    conclusion,
    continued,
    is_complete,
    prompt_of,
    read_so_far,
    wants_usage,
)
from dualmap_router.errors import ApiError
from dualmap_router.flight import Flight
from dualmap_router.models import Models
from dualmap_router.placement import Placement
from dualmap_router.request import parse_inference
from dualmap_router.sessions import Session
from dualmap_service.logs import of_request
from dualmap_wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_TOKENIZE_S = 5.0
_CHAT_FIELDS = (
    "messages", "tools", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template",
    "chat_template_kwargs",
)  # fmt: skip
"""Of a chat's body: what says which tokens its prompt has."""


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_tokenized = msgspec.json.Decoder(_Tokenized)


class ResumeError(Exception):
    """The stream cannot be continued; the message says why, for the log."""


class HelpersLostError(Exception):
    """Whoever was asked for the tokens of a text was lost too: ask again, somebody else or later."""


class Resumer:
    """Turns a flight that broke off into one for the rest of its answer."""

    def __init__(self, placement: Placement, models: Models) -> None:
        self._placement = placement
        self._models = models

    async def resume(self, flight: Flight, sessions: Sequence[Session]) -> bool:
        """Prepare the flight for its rest, or for its conclusion if none is left; false when that is not possible.

        `sessions` lead to instances that may be asked to tokenize the text so far, in order. Raises HelpersLostError
        when none of them is there any more.
        """
        try:
            await self._resume(flight, sessions)
        except ResumeError as why:
            log.info("stream.not_resumed", extra=of_request(flight.request_id, flight.trace_id, why=str(why)))
            return False
        return True

    async def _resume(self, flight: Flight, sessions: Sequence[Session]) -> None:
        data = None if flight.record is None else flight.record.read()
        if data is None:
            raise ResumeError("what the client has seen was not kept")
        if is_complete(data):
            flight.conclusion = b""
            return
        so_far = read_so_far(data)
        if so_far is None:
            raise ResumeError("what the client has seen cannot be continued")
        # Always from the first request and all that was seen: this may be the second engine that dies.
        body: dict[str, Any] = msgspec.json.decode(flight.first_body)
        if not can_continue(body):
            raise ResumeError("what was asked for cannot be continued")
        helpers = _Helpers(sessions, flight, body)
        text_ids = await helpers.ids(so_far.text, False) if so_far.text else ()
        rest = None
        if not so_far.is_finished:
            prompt_ids = () if "messages" in body else await helpers.prompt_ids()
            rest = continued(body, so_far.text, text_ids, prompt_ids)
        if rest is None:
            usage = (len(await helpers.prompt_ids()), len(text_ids)) if wants_usage(body) else None
            flight.conclusion = conclusion(so_far, usage)
            return
        flight.body = msgspec.json.encode(rest)
        try:
            inference = parse_inference(flight.label, flight.body)
        except ApiError as exc:
            raise ResumeError(f"the rest is no request: {exc.message}") from exc
        flight.prompt = self._placement.prompt(
            inference, self._models.adapter(inference.model), flight.prefix_key
        )
        flight.splice = Splice(so_far, len(text_ids))


class _Helpers:
    """Engines that tell the tokens of what one request asks and was answered."""

    def __init__(self, sessions: Sequence[Session], flight: Flight, body: Mapping[str, Any]) -> None:
        self._sessions = sessions
        self._flight = flight
        self._body = body

    async def prompt_ids(self) -> Sequence[int]:
        """The tokens of the request's own prompt."""
        body = self._body
        if "messages" in body:
            return await self._ask({name: body[name] for name in _CHAT_FIELDS if name in body})
        prompt = prompt_of(body)
        if prompt is None:
            raise ResumeError("it has several prompts")
        return (
            await self.ids(prompt, body.get("add_special_tokens", True))
            if isinstance(prompt, str)
            else prompt
        )

    async def ids(self, text: str, special: bool) -> Sequence[int]:
        """The tokens of a text."""
        return await self._ask({"prompt": text, "add_special_tokens": special})

    async def _ask(self, ask: dict[str, Any]) -> Sequence[int]:
        """What the first engine says that can.

        ResumeError when none does, HelpersLostError when none could be asked.
        """
        if self._body.get("model"):
            ask["model"] = self._body["model"]
        body = msgspec.json.encode(ask)
        why = ""
        for session in self._sessions:
            try:
                async with asyncio.timeout(_TOKENIZE_S):
                    answer = await _post(session, self._flight, "/tokenize", body)
                tokens = _tokenized.decode(answer).tokens
            except TimeoutError:
                why = f"{session.instance} did not answer in time"
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                why = f"{session.instance} cannot tell"
            except HelpersLostError:
                continue
            else:
                return tokens
        if not why:
            raise HelpersLostError
        raise ResumeError(f"the text so far could not be tokenized: {why}")


async def _post(session: Session, flight: Flight, path: str, body: bytes) -> bytes:
    """The body of an engine's answer; HelpersLostError when none comes."""
    exchange = session.submit(
        pb.Submit(
            request_id=f"{flight.request_id}-{path[1:]}",
            method="POST",
            path=path,
            headers=flight.headers,
            body=body,
        )
    )
    chunks: list[bytes] = []
    try:
        while (event := await exchange.next()) is not None:
            what, value = event
            if what == "data":
                chunks.append(value)
            elif what == "end":
                return b"".join(chunks)
            elif what == "failed":
                break
    finally:
        exchange.cancel()
    raise HelpersLostError
