"""What a worker reads of its engine, over a real socket."""

from typing import Any

from aiohttp import web

from dualmap_worker.engine import Engine, EngineInfo


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
    assert info == EngineInfo("m", ("lora",), 4096, 0, ("m-v2",))
