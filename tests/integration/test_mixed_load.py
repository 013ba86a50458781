"""A minute of model time with everything in it: conversations, a hotspot in the middle, streams and whole answers."""

from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.workloads import Traffic, add_hotspot, make_workload
from dualmap_sim.workloads.hotspot import Hotspot

from .load_checks import assert_all_once, assert_at_rest, metric, prompts, under_load, within_slo

_SHAPE = {"system_tokens": 1024, "user_tokens": 60, "answer_tokens": 12, "turns_mean": 3, "think_s": 5}


async def test_a_thousand_requests_with_a_hotspot_are_answered_once() -> None:
    # 18 requests per model second: at scale 4 about 70 a second, which two busy cores can do.
    # Redis has time to answer, however busy the machine is: that routers decide alone then is not what this is about.
    flags = {"route_deadline_ms": 1000.0}
    async with Stack(StackOptions(routers=2, workers=4, time_scale=4.0, router_flags=flags)) as stack:
        chats = make_workload("chat", Traffic(15.5, 930), _SHAPE)
        hot = add_hotspot(chats, Hotspot(share=0.5, prefix_tokens=4096, tail_tokens=2048))
        whole = prompts("whole", rate_req_s=1.5, count=90, tokens=1024)
        async with under_load(stack, (hot, True), (whole, False)) as load:
            records = await load.records()
        assert len(records) == 1020
        assert max(record.due_s for record in records) > 55
        await assert_all_once(stack, records)
        # Work is shared out: every router and every instance had its part.
        assert {record.router for record in records} == {"router-1", "router-2"}
        placed = {record.instance for record in records}
        assert placed == {f"worker-{number}" for number in (1, 2, 3, 4)}
        hot_ones = [record for record in records if record.session == "hotspot"]
        assert len(hot_ones) > 100
        # What follows the hot prefix, 16,000 tokens a second, is more than one instance prefills: it spreads.
        assert len({record.instance for record in hot_ones}) > 1
        cached = sum(record.cached_tokens or 0 for record in records)
        assert cached > 0.5 * sum(
            record.input_tokens for record in records if record.cached_tokens is not None
        )
        assert within_slo(records) > 0.9
        for url in stack.router_urls:
            assert await metric(url, "dualmap_local_decisions_total") == 0
        await assert_at_rest(stack)
