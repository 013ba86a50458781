"""Beside the router, (a): the least that a Python proxy can do. aiohttp in, aiohttp out, one engine, no decision."""

import argparse
import asyncio
import json

import aiohttp
import uvloop
from aiohttp import web

DROP = frozenset(("host", "content-length", "transfer-encoding", "connection", "date", "server"))
"""Headers of one hop."""


class Proxy:
    """Hands every request to one engine."""

    def __init__(self, engine: str, http: aiohttp.ClientSession) -> None:
        self._engine = engine
        self._http = http

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROP}
        url = self._engine + request.path_qs
        async with self._http.request(request.method, url, data=body, headers=headers) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in DROP}
            if answer.content_type != "text/event-stream":
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def serve(app: web.Application) -> None:
    """Serve on a free port, say which, and go on until ended."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
    await asyncio.Event().wait()


async def _main(engine: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as http:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", Proxy(engine, http).handle)
        await serve(app)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(parser.parse_args().engine))
