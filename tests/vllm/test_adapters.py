"""LoRA adapters of real vLLMs: followed as they come and go, found where they are, never mixed up."""

from typing import Any
from uuid import uuid4

from ..waiting import eventually
from .asking import Ask
from .conftest import ADAPTER, MODEL, RARE_ADAPTER

LONG = "the quick brown fox jumps over the lazy dog " * 120


def text(model: str, prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}


async def test_an_adapter_that_all_have(ask: Ask) -> None:
    base = await ask.same("/v1/completions", text(MODEL, LONG))
    adapted = await ask.same("/v1/completions", text(ADAPTER, LONG))
    assert base.json["choices"][0]["text"] != adapted.json["choices"][0]["text"]
    assert adapted.json["model"] == ADAPTER


async def test_an_adapter_that_one_has(ask: Ask, models: Any) -> None:
    async def status() -> int:
        return (await ask.routed("/v1/completions", text(RARE_ADAPTER, "hello"))).status

    async def listed() -> bool:
        cards = [(await ask.routed("/v1/models")).json["data"] for _ in range(2)]
        return all(RARE_ADAPTER in [card["id"] for card in data] for data in cards)

    async def unlisted() -> bool:
        return not await listed()

    assert await status() == 404
    for number in (0, 1, 2):
        expected = 200 if number == 2 else 404
        if number == 2:
            loads = {"lora_name": RARE_ADAPTER, "lora_path": str(models / RARE_ADAPTER)}
            assert (await ask.direct("/v1/load_lora_adapter", loads, engine=number)).status == 200
        assert (
            await ask.direct("/v1/completions", text(RARE_ADAPTER, "hi"), engine=number)
        ).status == expected
    await eventually(listed)
    where = set()
    for number in range(8):
        prompt = f"{number} {LONG}"
        reply = await ask.routed("/v1/completions", text(RARE_ADAPTER, prompt))
        assert reply.status == 200, reply.text
        where.add(reply.headers["x-dualmap-instance"])
        assert (await ask.routed("/tokenize", {"model": RARE_ADAPTER, "prompt": prompt})).status == 200
    assert where == {"worker-3"}
    unloads = {"lora_name": RARE_ADAPTER}
    assert (await ask.direct("/v1/unload_lora_adapter", unloads, engine=2)).status == 200
    await eventually(unlisted)
    assert await status() == 404


async def test_base_and_adapters_share_neither_key_nor_cache(ask: Ask) -> None:
    prompt = uuid4().hex + LONG
    keys, cached = [], []
    for model in (MODEL, ADAPTER, MODEL, ADAPTER):
        explained = await ask.routed("/debug/explain", text(model, prompt))
        keys.append(explained.json["prompt"]["key"])
        reply = await ask.routed("/v1/completions", text(model, prompt))
        cached.append(reply.json["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert keys[0] == keys[2] != keys[1] == keys[3]
    assert cached[:2] == [0, 0]
    assert min(cached[2:]) > 1000
