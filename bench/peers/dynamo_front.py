"""Dynamo's KV router in front of plain HTTP engines: its standalone selection service chooses, this process forwards.

Dynamo's own frontend sends only to workers of Dynamo's runtime. The selection service (`python -m
dynamo.select_service`) is the same choice over HTTP, for who forwards requests himself, as its documentation has it:
register the engines, reserve one for a prompt's token ids, tell of the first byte and of the end.
"""

import argparse
import asyncio
import contextlib
import uuid
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from bench.router.proxy import DROP
from dualmap_service.child import Child, start_child
from dualmap_sim.engine import canonical_prompt
from dualmap_sim.engine.render_api import token_ids_json
from dualmap_sim.engine.text import encode

_START_S = 30.0
_JSON = {"content-type": "application/json"}


class Front:
    """Forwards every request to the engine that the selector reserves."""

    def __init__(self, selector: str, model: str, http: aiohttp.ClientSession) -> None:
        self._selector = selector
        self._model = model
        self._http = http
        self._telling: set[asyncio.Task[None]] = set()

    async def register(self, engines: list[list[str]], block_size: int, num_blocks: int) -> None:
        """Tell the selector of every engine; each is its URL, its KV events and their replay."""
        for number, (url, events, replay) in enumerate(engines, 1):
            body = {
                "worker_id": number,
                "model_name": self._model,
                "endpoint": url,
                "kv_events_endpoint": events,
                "replay_endpoint": replay,
                "block_size": block_size,
                "total_kv_blocks": num_blocks,
                "max_num_batched_tokens": 8192,
            }
            async with self._http.post(f"{self._selector}/workers", json=body) as answer:
                said = await answer.json()
                if said.get("lifecycle") != "schedulable":
                    raise RuntimeError(f"the selector does not take {url}: {said}")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        selection = uuid.uuid4().hex
        prompt = encode(canonical_prompt(msgspec.json.decode(body)))
        wanted = {"model_name": self._model, "selection_id": selection, "token_ids": token_ids_json(prompt)}
        async with self._http.post(
            f"{self._selector}/select_and_reserve", data=msgspec.json.encode(wanted), headers=_JSON
        ) as answer:
            chosen: dict[str, Any] = msgspec.json.decode(await answer.read())
            if answer.status != 200:
                return web.json_response({"error": {"message": str(chosen)}}, status=503)
        try:
            return await self._forward(request, body, str(chosen["endpoint"]), selection)
        finally:
            self._tell("DELETE", f"reservations/{selection}")

    async def _forward(
        self, request: web.Request, body: bytes, engine: str, selection: str
    ) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROP}
        async with self._http.post(engine + request.path_qs, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            first = True
            async for chunk in answer.content.iter_any():
                if first:
                    first = False
                    self._tell("POST", f"reservations/{selection}/prefill_complete")
                await response.write(chunk)
            await response.write_eof()
            return response

    def _tell(self, method: str, path: str) -> None:
        # Beside the stream: the client must not wait for the books.
        task = asyncio.create_task(self._told(method, path))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, method: str, path: str) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async with self._http.request(method, f"{self._selector}/{path}", json={}):
                pass


async def _started(child: Child, http: aiohttp.ClientSession, selector: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_S
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{selector}/health") as answer:
                if answer.status == 200:
                    return
        if not child.running or loop.time() > deadline:
            raise RuntimeError(f"the selector did not start: {child.log_tail()}")
        await asyncio.sleep(0.1)


async def _main(given: argparse.Namespace) -> None:
    selector = f"http://127.0.0.1:{given.selector_port}"
    command = [given.python, "-m", "dynamo.select_service", "--port", str(given.selector_port)]
    child = start_child(command, "dynamo.select_service")
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as http:
            await _started(child, http, selector)
            front = Front(selector, given.model, http)
            engines = [engine.split(",") for engine in given.engine]
            await front.register(engines, given.block_size, given.num_blocks)
            app = web.Application(client_max_size=64 << 20)
            app.router.add_get("/readiness", _ready)
            app.router.add_route("POST", "/{path:.*}", front.handle)
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", given.port).start()
            await asyncio.Event().wait()
    finally:
        await child.stop()


async def _ready(_: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="of the environment that Dynamo is in")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--selector-port", type=int, required=True)
    parser.add_argument("--model", default="sim-model")
    parser.add_argument("--block-size", type=int, required=True)
    parser.add_argument("--num-blocks", type=int, required=True)
    parser.add_argument("--engine", action="append", required=True, help="URL,EVENTS,REPLAY")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(parser.parse_args()))
