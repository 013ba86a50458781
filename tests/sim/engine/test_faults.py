"""Each fault, as a client meets it."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from dualmap_sim.engine import EngineHost, EngineSpec, answers, expected_text, named_profile, start_engines
from tests.sim.engine.conditions import NOTHING_LEFT, set_faults, stats, wait_for_stats

BODY: dict[str, Any] = {"prompt": "fault", "max_tokens": 6}


async def post(http: aiohttp.ClientSession, **more: Any) -> tuple[int, Any]:
    async with http.post("/v1/completions", json={**BODY, **more}) as reply:
        return reply.status, await reply.json()


async def current_faults(http: aiohttp.ClientSession) -> Any:
    async with http.get("/admin/faults") as reply:
        return await reply.json()


async def test_errors_at_the_rate_asked_for(http: aiohttp.ClientSession) -> None:
    await set_faults(http, error_rate=0.5)
    statuses = [(await post(http))[0] for _ in range(40)]
    assert 8 < statuses.count(500) < 32
    assert set(statuses) == {200, 500}
    await set_faults(http, error_rate=1)
    status, body = await post(http)
    assert (status, body["error"]["type"]) == (500, "InternalServerError")
    assert (await stats(http))["totals"]["failed"] == statuses.count(500) + 1
    await set_faults(http, reset=True)
    assert (await post(http))[0] == 200


async def test_a_fault_can_be_limited_to_a_number_of_requests(http: aiohttp.ClientSession) -> None:
    await set_faults(http, error_rate=1, times=2)
    assert [(await post(http))[0] for _ in range(4)] == [500, 500, 200, 200]
    async with http.get("/admin/faults") as reply:
        assert (await reply.json())["times"] == 0


async def test_latency_is_added(http: aiohttp.ClientSession) -> None:
    await set_faults(http, latency_ms=120)
    began_s = time.monotonic()
    assert (await post(http))[0] == 200
    assert time.monotonic() - began_s >= 0.12


async def test_a_hanging_engine_takes_the_request_and_says_nothing(http: aiohttp.ClientSession) -> None:
    await set_faults(http, hang=True, times=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(post(http), 0.2)
    assert (await post(http))[0] == 200
    assert (await stats(http))["leftovers"] == NOTHING_LEFT


async def test_a_hanging_request_does_not_hold_up_the_stop(
    http: aiohttp.ClientSession, host: EngineHost
) -> None:
    await set_faults(http, hang=True, times=1)
    hanging = asyncio.create_task(post(http))
    async with asyncio.timeout(5):
        while (await current_faults(http))["times"]:
            pass
        await host.stop()
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_garbage_does_not_pass_the_check(http: aiohttp.ClientSession) -> None:
    await set_faults(http, garbage=True, times=1)
    _, body = await post(http)
    assert not answers(BODY, body["choices"][0]["text"])
    _, body = await post(http)
    assert answers(BODY, body["choices"][0]["text"])


async def test_a_stream_dies_after_n_tokens(http: aiohttp.ClientSession) -> None:
    await set_faults(http, die_after_tokens=3, times=2)
    text = ""
    with pytest.raises(aiohttp.ClientError):
        async with http.post("/v1/completions", json={**BODY, "stream": True}) as reply:
            async for line in reply.content:
                if line.startswith(b"data: "):
                    text += json.loads(line[6:])["choices"][0]["text"]
    assert text == expected_text(b"fault", 3)
    with pytest.raises(aiohttp.ClientError):
        await post(http)
    assert (await post(http))[0] == 200
    books = await wait_for_stats(http, open=0)
    assert books["totals"] == {"started": 3, "finished": 1, "aborted": 2, "failed": 0}
    assert books["leftovers"] == NOTHING_LEFT


async def test_slow_down_takes_hold_while_requests_run(http: aiohttp.ClientSession) -> None:
    await post(http, max_tokens=100)
    healthy_s = (await stats(http))["busy_s"]
    async with http.post("/v1/completions", json={**BODY, "max_tokens": 100, "stream": True}) as reply:
        await reply.content.readline()
        await set_faults(http, slow_down=10)
        await reply.read()
    assert (await stats(http))["busy_s"] - healthy_s > 5 * healthy_s


async def test_an_unhealthy_engine_says_so(http: aiohttp.ClientSession) -> None:
    await set_faults(http, unhealthy=True)
    async with http.get("/health") as reply:
        assert reply.status == 503


async def test_a_crash_closes_the_listener_and_cuts_the_streams_of_that_engine_only() -> None:
    specs = [EngineSpec(named_profile("fast")) for _ in range(2)]
    async with (
        await start_engines(specs) as host,
        aiohttp.ClientSession(host.addresses[0].url) as doomed,
        aiohttp.ClientSession(host.addresses[1].url) as other,
    ):
        endless = asyncio.create_task(post(doomed, max_tokens=100_000))
        await wait_for_stats(doomed, running=1)
        async with doomed.post("/admin/crash") as reply:
            assert reply.status == 200
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(endless, 5)
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(5):
                while True:
                    await stats(doomed)
        assert (await post(other))[0] == 200
        await host.restart(0)
        assert (await post(doomed))[0] == 200
        assert (await stats(doomed))["totals"]["started"] == 1


async def test_reset_cache_forgets(http: aiohttp.ClientSession) -> None:
    for expected in (0, 0):
        _, body = await post(http, prompt="again" * 40)
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == expected
        async with http.post("/admin/reset_cache") as reply:
            assert (await reply.json()) == {"success": True}
    assert (await stats(http))["cached_blocks"] == 0
