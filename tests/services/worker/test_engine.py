"""What an engine says of itself: its names, over a real socket, and its metrics."""

from typing import Any

import pytest
from aiohttp import web

from dualmap.types import EngineLoad
from dualmap_worker.engine import Engine, EngineInfo, parse_metrics

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
