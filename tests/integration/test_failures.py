"""Processes die, freeze and forget under load: clients see answers, and afterwards nothing is left."""

import asyncio
import signal
from collections.abc import Sequence

import aiohttp
import pytest
from redis.asyncio import Redis

from dualmap_cli.load import RequestRecord
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload
from dualmap_wire.redis_keys import PoolKeys

from .load_checks import (
    MODEL,
    assert_all_once,
    assert_answered,
    assert_at_rest,
    assert_finished_once,
    holds,
    metric,
    moves_done,
    prompts,
    rebalancer_url,
    set_faults,
    under_load,
    until,
    with_headers,
)

# How long a lease outlives its holder, and how long its reaping may take on top.
_REAPED_S = 8.0


def _chat(seed: int, rate_req_s: float, count: int, answer_tokens: int = 60) -> list[TimedRequest]:
    """Conversations; ids of their own per seed."""
    shape = {"system_tokens": 1024, "answer_tokens": answer_tokens}
    return make_workload("chat", Traffic(rate_req_s, count, seed=seed), shape)


def _retried(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    return [record for record in records if record.ok and record.reason == "retry"]


async def test_a_killed_worker_and_a_killed_engine_cost_nothing() -> None:
    # No bound on the wait: two of three instances die, and what they had has to wait for the third.
    options = StackOptions(
        routers=2,
        workers=2,
        time_scale=8.0,
        slo_s=30.0,
        router_flags={"max_wait_s": 0},
        rebalancer_flags={"enabled": False},
    )
    async with Stack(options) as stack:
        # An engine in a process of its own, so that it can be killed alone.
        lonely_engine = (await stack.start_engines(1))[0]
        lonely = stack.start_worker(lonely_engine)
        await stack.event(lonely, "worker.ready")
        await stack.wait_ready(3)
        # Two streams on each instance that go on for seconds.
        begun = with_headers(
            prompts("begun", rate_req_s=50.0, count=6, tokens=64, output_tokens=1500),
            x_dualmap_policy="round-robin",
        )
        streamed = prompts("streamed", rate_req_s=3.0, count=45, tokens=4096, output_tokens=60)
        whole = prompts("whole", rate_req_s=2.0, count=30, tokens=4096, output_tokens=60, seed=2)
        async with under_load(stack, (begun, True), (streamed, True), (whole, False)) as load:
            await set_faults(stack.engine_urls[0], slow_down=4.0)
            await until(lambda: holds(stack, "worker-1", queued=3, running=1), 20, "a queue on worker-1")
            stack.children["worker-1"].process.kill()
            await until(lambda: holds(stack, lonely, running=2), 20, "requests in the lonely engine")
            stack.children["engine-2"].process.kill()
            records = await load.records()
        # Streams that had begun go on elsewhere, what had not begun starts there.
        broken = assert_answered(records, lost=["worker-1", lonely])
        assert broken == []
        assert _retried([record for record in records if "-streamed-" in record.request_id])
        assert _retried([record for record in records if "-whole-" in record.request_id])
        # What had not begun went on elsewhere, and what was answered without fault was done once.
        await assert_finished_once(stack, records, gone=[lonely_engine])
        await assert_at_rest(stack, gone=[lonely_engine])


async def test_a_frozen_worker_is_left_behind_and_returns() -> None:
    options = StackOptions(routers=2, workers=3, time_scale=4.0, slo_s=30.0)
    async with Stack(options) as stack:
        frozen = stack.children["worker-2"]

        async def placed_there() -> float:
            urls = stack.router_urls
            return sum([await metric(url, "dualmap_decisions_total", instance="worker-2") for url in urls])

        async with under_load(stack, (_chat(3, 2.5, 105), True), (_chat(4, 0.5, 21), False)) as load:
            await until(lambda: holds(stack, "worker-2", running=1), 20, "work on worker-2")
            frozen.process.send_signal(signal.SIGSTOP)
            try:
                # Not a wait for something: how long it is frozen. Past its lease, the keepalive and the reaper.
                await asyncio.sleep(6.0)
            finally:
                frozen.process.send_signal(signal.SIGCONT)
            before = await placed_there()

            async def has_new_work() -> bool:
                return await placed_there() > before

            await until(has_new_work, 10, "new requests for the instance that is back")
            records = await load.records()
        assert_answered(records, lost=["worker-2"])
        assert _retried(records)
        await stack.wait_ready(3)
        await assert_at_rest(stack)


async def _router_charges(stack: Stack, router: str) -> int:
    redis = Redis.from_url(stack.redis_url)
    try:
        return int(await redis.hlen(PoolKeys(stack.options.pool).router_charges(router)))
    finally:
        await redis.aclose()


async def test_a_killed_routers_charges_are_reaped() -> None:
    options = StackOptions(routers=2, workers=2, time_scale=8.0, slo_s=30.0)
    async with Stack(options) as stack:
        survivor, victim = stack.router_urls
        doomed = prompts("doomed", rate_req_s=20.0, count=30, tokens=4096)
        kept = prompts("kept", rate_req_s=3.0, count=40, tokens=2048, seed=2)
        async with (
            under_load(stack, (kept, True), urls=[survivor]) as load,
            under_load(stack, (doomed, True), urls=[victim]) as lost,
        ):

            async def has_charges() -> bool:
                return await _router_charges(stack, "router-2") >= 5

            await until(has_charges, 10, "charges of router-2")
            stack.children["router-2"].process.kill()

            async def has_none() -> bool:
                return await _router_charges(stack, "router-2") == 0

            await until(has_none, _REAPED_S, "charges of the dead router reaped")
            records = await load.records()
            cut = await lost.records()
        await assert_all_once(stack, records)
        # Its own clients learn it at once: they may ask another router.
        assert {record.error for record in cut} <= {None, "cut", "disconnected", "connect"}
        assert any(record.error is not None for record in cut)
        await assert_at_rest(stack, [survivor])


async def test_a_router_that_is_told_to_stop_finishes_its_streams() -> None:
    options = StackOptions(routers=2, workers=2, time_scale=4.0, slo_s=30.0)
    async with Stack(options) as stack:
        staying, leaving = stack.router_urls
        running = prompts("running", rate_req_s=30.0, count=16, tokens=1024, output_tokens=400)
        other = prompts("other", rate_req_s=2.0, count=16, tokens=1024, seed=2)
        async with (
            under_load(stack, (running[:12], True), (running[12:], False), urls=[leaving]) as load,
            under_load(stack, (other, True), urls=[staying]) as elsewhere,
        ):

            async def all_there() -> bool:
                return await metric(leaving, "dualmap_in_flight") == len(running)

            await until(all_there, 10, "all streams in router-2")
            stack.children["router-2"].process.terminate()
            await stack.event("router-2", "router.draining")
            assert await _refused(leaving)
            records = [*await load.records(), *await elsewhere.records()]
        assert await stack.children["router-2"].wait(20.0) == 0
        await assert_all_once(stack, records)
        await assert_at_rest(stack, [staying])


async def _refused(url: str) -> bool:
    """Whether a router takes nothing new: 503, or no listener."""
    body = {"model": MODEL, "prompt": "anyone there?", "max_tokens": 1}
    try:
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/readyz") as ready:
                assert ready.status == 503
            async with http.post(f"{url}/v1/completions", json=body) as answer:
                return answer.status == 503
    except aiohttp.ClientConnectorError:
        return True


async def _degraded(url: str) -> bool:
    """Whether a router decides alone now, by what its answers say; the request itself must not fail."""
    body = {"model": MODEL, "prompt": "who decides?", "max_tokens": 1}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return answer.headers.get("x-dualmap-degraded") == "local"


async def _owned_chunks(stack: Stack) -> int:
    redis = Redis.from_url(stack.redis_url)
    try:
        keys = PoolKeys(stack.options.pool)
        return sum([int(await redis.zcard(keys.own(f"worker-{i}"))) for i in (1, 2, 3)])
    finally:
        await redis.aclose()


@pytest.mark.parametrize("fault", ["frozen", "killed", "flushed"])
async def test_the_store_fails_under_load_and_no_request_does(fault: str) -> None:
    options = StackOptions(routers=2, workers=3, time_scale=4.0, slo_s=30.0)
    async with Stack(options) as stack:
        assert stack.store is not None
        workload = (_chat(5, 5.0, 145), True), (_chat(6, 1.0, 29), False)
        async with under_load(stack, *workload) as load:
            await until(lambda: holds(stack, "worker-1", running=1), 20, "work on worker-1")
            if fault == "flushed":
                redis = Redis.from_url(stack.redis_url)
                await redis.flushall()
                await redis.aclose()
            else:
                stack.store.pause() if fault == "frozen" else stack.store.kill()
                for url in stack.router_urls:
                    await until(lambda url=url: _degraded(url), 10, "decisions without the store")
                # Longer than every lease: on its return the store knows nobody.
                await asyncio.sleep(4.0)
                for url in stack.router_urls:
                    assert await _degraded(url)
                if fault == "frozen":
                    stack.store.resume()
                else:
                    await stack.store.restart()

            async def shared_again() -> bool:
                return not any([await _degraded(url) for url in stack.router_urls])

            await until(shared_again, 15, "decisions with the store")
            records = await load.records()
        await assert_all_once(stack, records)
        # It is rebuilt: ownership by what was routed since, charges by what is still there, which is nothing.
        assert await _owned_chunks(stack) > 0
        await stack.wait_ready(3)
        await assert_at_rest(stack)


async def test_moving_goes_on_when_the_leading_rebalancer_is_killed() -> None:
    options = StackOptions(routers=1, workers=3, rebalancers=2, time_scale=8.0, slo_s=20.0)
    async with Stack(options) as stack:
        names = ("rebalancer-1", "rebalancer-2")
        leading = [
            await metric(await rebalancer_url(stack, name), "dualmap_rebalancer_leader") for name in names
        ]
        assert sum(leading) == 1
        leader, standby = names if leading[0] else names[::-1]
        stack.children[leader].process.kill()
        standby_url = await rebalancer_url(stack, standby)

        async def leads() -> bool:
            return await metric(standby_url, "dualmap_rebalancer_leader") == 1

        requests = prompts("orphaned", rate_req_s=6.0, count=80, tokens=4096)
        async with under_load(stack, (requests, True)) as load:
            await set_faults(stack.engine_urls[0], slow_down=10.0)
            # DESIGN 8: a standby leads within 5 s.
            await until(leads, 6.0, "a standby that leads")
            records = await load.records()
        assert await moves_done(stack, standby) > 0
        assert any(record.moves for record in records)
        await assert_all_once(stack, records)
        await assert_at_rest(stack)


async def test_what_needs_no_prefill_also_goes_elsewhere() -> None:
    # Freshly dead: its worker still offers it, and has the least to do of all.
    async with Stack(StackOptions(routers=1, workers=1, time_scale=4.0)) as stack:
        dying = (await stack.start_engines(1))[0]
        await stack.event(stack.start_worker(dying), "worker.ready")
        await stack.wait_ready(2)
        busy = prompts("busy", rate_req_s=50.0, count=4, tokens=64, output_tokens=1500)
        async with under_load(stack, (busy, True)):
            await until(lambda: holds(stack, "worker-1", running=1), 10, "work on worker-1")
            stack.children["engine-2"].process.kill()
            async with aiohttp.ClientSession() as http:
                for number in range(8):
                    body = {"model": MODEL, "prompt": f"number {number}"}
                    async with http.post(f"{stack.router_urls[0]}/tokenize", json=body) as answer:
                        assert answer.status == 200, await answer.text()
        await assert_at_rest(stack, gone=[dying])
