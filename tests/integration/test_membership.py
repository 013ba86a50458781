"""Instances come and go under load: nobody notices but the keys that change hands."""

import random

import aiohttp
from redis.asyncio import Redis

from dualmap.hash_ring import RingPair
from dualmap_cli.stack import Stack, StackOptions
from dualmap_wire.redis_keys import PoolKeys
from dualmap_wire.v1 import worker_pb2 as pb

from .load_checks import (
    MODEL,
    assert_answered,
    assert_at_rest,
    assert_finished_once,
    control,
    describe,
    fetch,
    holds,
    metric,
    prompts,
    set_faults,
    under_load,
    until,
    with_headers,
)


async def _registered(stack: Stack) -> set[str]:
    redis = Redis.from_url(stack.redis_url)
    try:
        return {name.decode() for name in await redis.hkeys(PoolKeys(stack.options.pool).instances)}
    finally:
        await redis.aclose()


async def _candidates(url: str, count: int = 80) -> list[frozenset[str]]:
    """The candidates of fixed prompts, as the answers' headers name them."""
    pairs = []
    async with aiohttp.ClientSession() as http:
        for number in range(count):
            body = {"model": MODEL, "prompt": f"a short prompt, number {number}", "max_tokens": 1}
            async with http.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                pairs.append(frozenset(answer.headers["x-dualmap-candidates"].split(",")))
    return pairs


def _changed(before: list[frozenset[str]], after: list[frozenset[str]]) -> float:
    return sum(a != b for a, b in zip(before, after, strict=True)) / len(before)


def _changed_on_rings(before: int, after: int, keys: int = 4000) -> float:
    """The share of keys whose pair differs between pools of so many instances."""
    rng = random.Random(7)
    old, new = (RingPair({f"worker-{i + 1}": 1.0 for i in range(size)}) for size in (before, after))
    sample = [rng.getrandbits(64) for _ in range(keys)]
    return _changed(*([frozenset(rings.candidates(key)) for key in sample] for rings in (old, new)))


async def test_an_instance_joins_under_load() -> None:
    options = StackOptions(routers=2, workers=3, time_scale=8.0)
    async with Stack(options) as stack:
        before = await _candidates(stack.router_urls[0])
        # New prompts all along: known ones would rightly stay where their cache is.
        workload = prompts("joined", rate_req_s=2.5, count=200, tokens=1024, output_tokens=30)
        async with under_load(stack, (workload, True)) as load:
            worker = stack.start_worker((await stack.start_engines(1))[0])
            await stack.event(worker, "worker.ready")
            await stack.wait_ready(4)

            async def has_traffic() -> bool:
                shares = [await metric(url, "dualmap_decisions_total", instance=worker) for url in urls]
                return min(shares) > 0

            urls = stack.router_urls
            await until(has_traffic, 20, "requests for the new instance from both routers")
            records = await load.records()
        assert any(record.instance == worker for record in records)
        assert_answered(records)
        await assert_finished_once(stack, records)

        # DESIGN 5.3: about 2/(n+1) of the pairs change when an instance joins n others.
        promised = 2 / 4
        assert _changed_on_rings(3, 4) < promised * 1.1
        after = await _candidates(stack.router_urls[1])
        # 80 prompts stand for all keys: three standard deviations of such a sample are 0.17.
        assert 0 < _changed(before, after) < promised + 0.17
        # A pair changes by the newcomer or not at all.
        assert all(b == a or worker in b for a, b in zip(before, after, strict=True))
        await assert_at_rest(stack)


async def test_sigterm_drains_a_worker_under_load() -> None:
    # No moves: what waits on the slow instance still waits there when it drains.
    options = StackOptions(
        routers=2, workers=4, time_scale=8.0, slo_s=30.0, rebalancer_flags={"enabled": False}
    )
    async with Stack(options) as stack:
        before = await _candidates(stack.router_urls[0])
        # In turn and against a slow engine: the default policy would send it too little to make it queue.
        requests = with_headers(
            prompts("drained", rate_req_s=6.0, count=60, tokens=4096, output_tokens=60),
            x_dualmap_policy="round-robin",
        )
        await set_faults(stack.engine_urls[0], slow_down=10.0)
        async with under_load(stack, (requests[:40], True), (requests[40:], False)) as load:
            await until(lambda: holds(stack, "worker-1", queued=2, running=1), 20, "a queue on worker-1")
            leaving = stack.children["worker-1"]
            leaving.process.terminate()
            draining = await stack.event("worker-1", "worker.draining")
            # In an orderly way: at once for what waits, in its own time for what runs.
            assert int(str(draining["handed_back"])) >= 2
            assert int(str(draining["running"])) >= 1
            assert await leaving.wait(40.0) == 0
            assert "worker.drain_cut" not in leaving.log_tail(4000)
            records = await load.records()
        assert_answered(records)
        await assert_finished_once(stack, records)
        assert any(record.reason == "retry" for record in records)
        # It finished what it had begun.
        assert any(record.instance == "worker-1" for record in records)
        assert await _registered(stack) == {"worker-2", "worker-3", "worker-4"}

        after = await _candidates(stack.router_urls[1])
        assert not any("worker-1" in pair for pair in after)
        # Only the keys that it held change: 2/(n+1) of the pairs for the n that stay.
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert all("worker-1" in old for old, _ in changed)
        assert len(changed) / len(before) < 2 / 4 + 0.17
        # Each of them keeps its other candidate, and so its cache.
        assert all(len(old & new) == 1 for old, new in changed)
        await assert_at_rest(stack)


async def test_the_drain_call_hands_back_and_takes_nothing_more() -> None:
    options = StackOptions(
        routers=1, workers=3, time_scale=8.0, slo_s=30.0, rebalancer_flags={"enabled": False}
    )
    async with Stack(options) as stack:
        requests = prompts("drain-call", rate_req_s=5.0, count=50, tokens=4096, output_tokens=40)
        async with under_load(stack, (requests, True)) as load:
            await set_faults(stack.engine_urls[1], slow_down=5.0)
            await until(lambda: holds(stack, "worker-2", queued=2, running=1), 20, "a queue on worker-2")
            async with control(stack, "worker-2") as stub:
                reply: pb.DrainReply = await stub.Drain(pb.DrainRequest(), timeout=10.0)
            assert reply.handed_back >= 2
            assert reply.running >= 1
            records = await load.records()
        assert_answered(records)
        await assert_finished_once(stack, records)
        # It stays in the registry, so that its streams can end, and no ring offers it.
        described = await describe(stack, "worker-2")
        assert (described.state, described.queued, described.running) == ("draining", 0, 0)
        assert not any("worker-2" in pair for pair in await _candidates(stack.router_urls[0], 30))
        assert '"worker-2"' not in await fetch(f"{stack.router_urls[0]}/readyz")
        await assert_at_rest(stack)
