"""Dynamo's KV router in front of plain HTTP engines: its standalone selection service chooses, this process forwards.

Dynamo's own frontend sends only to workers of Dynamo's runtime. The selection service (`python -m
dynamo.select_service`) is the same choice over HTTP, for who forwards requests himself, as its documentation has it:
register the engines, reserve one for a prompt's token ids, tell of the first byte and of the end.
"""

import argparse
import asyncio
import contextlib
from typing import Any

import aiohttp
import msgspec
import uvloop

from bench.peers.engines import PROFILE
from bench.peers.front import Front, open_http, serve
from dualmap_service.child import Child, start_child
from dualmap_sim.engine.render_api import token_ids_json

_START_S = 30.0
_JSON = {"content-type": "application/json"}


class Selector:
    """The selection service of one model."""

    def __init__(self, url: str, model: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._model = model
        self._http = http
        self._telling: set[asyncio.Task[None]] = set()

    async def register(self, engines: list[list[str]]) -> None:
        """Tell it of every engine; each is its URL, its KV events and their replay."""
        for number, (url, events, replay) in enumerate(engines, 1):
            body = {
                "worker_id": number,
                "model_name": self._model,
                "endpoint": url,
                "kv_events_endpoint": events,
                "replay_endpoint": replay,
                "block_size": PROFILE.block_size,
                "total_kv_blocks": PROFILE.num_kv_blocks,
                "max_num_batched_tokens": PROFILE.max_num_batched_tokens,
            }
            async with self._http.post(f"{self._url}/workers", json=body) as answer:
                said = await answer.json()
                if said.get("lifecycle") != "schedulable":
                    raise RuntimeError(f"the selector does not take {url}: {said}")

    async def choose(self, request_id: str, prompt: bytes) -> str:
        """Reserve an engine."""
        wanted = {
            "model_name": self._model,
            "selection_id": request_id,
            "token_ids": token_ids_json(prompt),
        }
        async with self._http.post(
            f"{self._url}/select_and_reserve", data=msgspec.json.encode(wanted), headers=_JSON
        ) as answer:
            answer.raise_for_status()
            chosen: dict[str, Any] = msgspec.json.decode(await answer.read())
            return str(chosen["endpoint"])

    def began(self, request_id: str) -> None:
        """Its prefill is complete."""
        self._tell("POST", f"reservations/{request_id}/prefill_complete")

    def ended(self, request_id: str) -> None:
        """Its reservation is free."""
        self._tell("DELETE", f"reservations/{request_id}")

    def _tell(self, method: str, path: str) -> None:
        # Beside the stream: the client must not wait for the books.
        task = asyncio.create_task(self._told(method, path))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, method: str, path: str) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async with self._http.request(method, f"{self._url}/{path}", json={}):
                pass


async def _started(child: Child, http: aiohttp.ClientSession, url: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_S
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{url}/health") as answer:
                if answer.status == 200:
                    return
        if not child.running or loop.time() > deadline:
            raise RuntimeError("the selector did not start")
        await asyncio.sleep(0.1)


async def _main(given: argparse.Namespace) -> None:
    url = f"http://127.0.0.1:{given.selector_port}"
    command = [given.python, "-m", "dynamo.select_service", "--port", str(given.selector_port)]
    child = start_child(command, "dynamo.select_service")
    try:
        async with open_http() as http:
            await _started(child, http, url)
            selector = Selector(url, given.model, http)
            await selector.register([engine.split(",") for engine in given.engine])
            await serve(Front(selector, http), given.port)
    finally:
        await child.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="of the environment that Dynamo is in")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--selector-port", type=int, required=True)
    parser.add_argument("--model", default="sim-model")
    parser.add_argument("--engine", action="append", required=True, help="URL,EVENTS,REPLAY")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(parser.parse_args()))
