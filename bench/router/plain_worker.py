"""The gRPC server of the plain arrangement: one unary-stream call is one request to the engine beside it."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import uvloop

SERVICE = "bench.Plain"
METHOD = f"/{SERVICE}/Generate"


class Worker:
    """Answers with the status first, then the engine's bytes as they come."""

    def __init__(self, engine: str, http: aiohttp.ClientSession) -> None:
        self._url = f"{engine}/v1/chat/completions"
        self._http = http

    async def generate(self, body: bytes, context: Any) -> AsyncIterator[bytes]:
        """One request."""
        headers = {"content-type": "application/json"}
        async with self._http.post(self._url, data=body, headers=headers) as answer:
            yield str(answer.status).encode()
            async for chunk in answer.content.iter_any():
                yield chunk


async def _main(engine: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as http:
        server = grpc.aio.server()
        method = grpc.unary_stream_rpc_method_handler(Worker(engine, http).generate)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Generate": method}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(parser.parse_args().engine))
