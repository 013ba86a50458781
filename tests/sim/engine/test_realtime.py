import asyncio
import time

import aiohttp
import pytest

from dualmap_sim.engine import EngineProfile, EngineSpec, start_engines
from tests.sim.engine.conditions import stats


@pytest.mark.parametrize("time_scale", [10.0, 20.0])
async def test_wall_time_is_model_time_over_the_scale_and_does_not_drift(time_scale: float) -> None:
    # 1.2 ms or less a step: a sleep that oversleeps by 1 ms a step would nearly double the time.
    profile = EngineProfile(time_scale=time_scale)
    async with (
        await start_engines([EngineSpec(profile, kv_events=False)]) as host,
        aiohttp.ClientSession(host.addresses[0].url) as http,
    ):
        began_s = time.monotonic()
        async with http.post("/v1/completions", json={"prompt": "tick", "max_tokens": 500}) as reply:
            assert reply.status == 200
        took_s = time.monotonic() - began_s
        model_s = (await stats(http))["busy_s"]
    assert model_s == pytest.approx(0.015 + 90e-6 + 499 * 0.0121, rel=1e-3)
    assert model_s / time_scale <= took_s + 0.01
    # Generous above: the machine may be busy with others.
    assert took_s < model_s / time_scale + 0.5


@pytest.mark.parametrize(("interval", "chunks"), [(1, 10), (4, 4), (16, 2)])
async def test_a_stream_has_its_first_token_at_once_and_then_so_many_a_chunk(
    interval: int, chunks: int
) -> None:
    # Slow enough that no two tokens meet by chance.
    profile = EngineProfile(stream_interval=interval, time_scale=0.5)
    body = {"prompt": "tick", "max_tokens": 10, "stream": True}
    async with (
        await start_engines([EngineSpec(profile, kv_events=False)]) as host,
        aiohttp.ClientSession(host.addresses[0].url) as http,
        http.post("/v1/completions", json=body) as reply,
    ):
        events = [line for line in (await reply.text()).split("\n\n") if '"text"' in line]
    # Of 4 tokens a chunk: 1, 4, 8, and the end.
    assert len(events) == chunks


async def test_engines_of_one_process_are_apart() -> None:
    specs = [
        EngineSpec(EngineProfile(time_scale=100), model=f"m{index}", kv_events=False) for index in range(3)
    ]
    async with await start_engines(specs) as host:
        assert len({address.port for address in host.addresses}) == 3
        assert [address.kv_events for address in host.addresses] == [None] * 3

        async def ask(index: int) -> int:
            async with aiohttp.ClientSession(host.addresses[index].url) as http:
                for _ in range(index + 1):
                    async with http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}) as reply:
                        assert reply.status == 200
                return int((await stats(http))["totals"]["finished"])

        assert await asyncio.gather(*(ask(index) for index in range(3))) == [1, 2, 3]


async def test_all_engines_start_or_none() -> None:
    async with await start_engines([EngineSpec(kv_events=False)]) as host:
        taken = host.addresses[0].port
        with pytest.raises(OSError, match="in use"):
            await start_engines([EngineSpec(), EngineSpec(port=taken)])
