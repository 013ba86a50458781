"""What an engine says of itself: its names, over a real socket, and its metrics."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from dualmap.types import EngineLoad
from dualmap_worker.engine import Engine, EngineInfo, parse_metrics
from dualmap_worker.errors import EngineLostError

RANKS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.41
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.8725
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="900"} 1.0
"""


def test_ranks_add_up_but_the_fullest_counts() -> None:
    assert parse_metrics(RANKS) == (EngineLoad(running=7, waiting=2, kv_use=0.8725), 16 * 1900)


def test_one_engine_without_labels() -> None:
    text = "vllm:num_requests_running 2\nvllm:kv_cache_usage_perc 5e-05\n"
    assert parse_metrics(text) == (EngineLoad(running=2, kv_use=5e-05), 0)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e999", "1.2.3", "1e", "-", "9" * 5000, ""])
def test_a_value_without_meaning_is_not_said(value: str) -> None:
    config = 'vllm:cache_config_info{block_size="None",num_gpu_blocks="\u00b2"} 1.0'
    text = f"vllm:num_requests_running {value}\nvllm:kv_cache_usage_perc {value}\n{config}\n"
    assert parse_metrics(text) == (EngineLoad(), 0)


async def test_an_engines_names() -> None:
    """vLLM lists each --served-model-name without a parent, then its adapters with one."""
    cards: list[dict[str, Any]] = [
        {"id": "m", "root": "org/m", "parent": None, "max_model_len": 4096},
        {"id": "m-v2", "root": "org/m", "parent": None, "max_model_len": 4096},
        {"id": "lora", "root": "org/lora", "parent": "m"},
    ]

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": cards})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine = Engine(f"http://127.0.0.1:{runner.addresses[0][1]}", "", 5.0, 4)
    await engine.open()
    try:
        info = await engine.info()
    finally:
        await engine.close()
        await runner.cleanup()
    assert info == EngineInfo("m", ("lora",), 4096, ("m-v2",))


GOOD_CHUNK = b"5\r\nhello\r\n"


@pytest.mark.parametrize("bad", [b"\xff\x00" * 64, b"zz\r\nabc\r\n", b"5\r\nhello world\r\n"])
@pytest.mark.parametrize("while_reading", [True, False])
async def test_a_chunk_that_is_none_ends_the_answer(bad: bytes, while_reading: bool) -> None:
    """The connection stays open on the engine's side: nothing but the parser can know."""
    first_is_read = asyncio.Event()
    sent = asyncio.Event()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + GOOD_CHUNK)
        await first_is_read.wait()
        writer.write(bad)
        await writer.drain()
        sent.set()
        await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(20):
        engine = Engine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "", 60.0, 4)
        await engine.open()
        try:
            with pytest.raises(EngineLostError):
                async with engine.request("GET", "/") as answer:
                    chunks = answer.chunks()
                    assert await anext(chunks) == b"hello"
                    first_is_read.set()
                    if not while_reading:
                        await sent.wait()
                        await asyncio.sleep(0.05)
                    async for _ in chunks:
                        pass
        finally:
            over.set()
            await engine.close()


async def test_a_connection_is_kept_for_the_next_answer_and_keeps_nothing_of_the_last() -> None:
    peers = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"x" * 1000)
            await asyncio.sleep(0.005)
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine = Engine(f"http://127.0.0.1:{runner.addresses[0][1]}", "", 5.0, 4)
    await engine.open()
    try:
        for _ in range(20):
            async with engine.request("GET", "/") as got:
                assert len(await got.read()) == 3000
        assert len(peers) == 1
        [(protocol, _)] = next(iter(engine.http.connector._conns.values()))  # type: ignore[union-attr]
        assert protocol.closed is not None
        assert len(protocol.closed._callbacks or ()) == 1
    finally:
        await engine.close()
        await runner.cleanup()
