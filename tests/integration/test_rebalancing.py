"""One instance turns slow under load: what waits there is answered elsewhere, once, and sooner."""

from dataclasses import dataclass

from dualmap_cli.load import RequestRecord
from dualmap_cli.stack import Stack, StackOptions

from .load_checks import (
    assert_all_once,
    assert_at_rest,
    holds,
    moves_done,
    p90,
    prompts,
    set_faults,
    under_load,
    until,
)


@dataclass
class Run:
    records: list[RequestRecord]
    moves_done: float


async def _slowed(enabled: bool) -> Run:
    """A burst of long prompts over three instances, the first of which turns ten times slower meanwhile."""
    options = StackOptions(
        routers=2,
        workers=3,
        time_scale=4.0,
        slo_s=20.0,
        rebalancer_flags={"enabled": enabled},
    )
    async with Stack(options) as stack:
        # 0.4 s of prefill each: about 6 s of work per instance, known to all when one becomes slow.
        requests = prompts("slowed", rate_req_s=15.0, count=48, tokens=4096)
        async with under_load(stack, (requests, True)) as load:
            await until(lambda: holds(stack, "worker-1", queued=4), 20, "a queue on worker-1")
            await set_faults(stack.engine_urls[0], slow_down=10.0)
            records = await load.records()
        run = Run(records, await moves_done(stack))
        await assert_all_once(stack, records)
        await assert_at_rest(stack)
    return run


async def test_a_slowed_instances_queue_moves_and_meets_the_slo_more_often() -> None:
    without = await _slowed(enabled=False)
    rebalanced = await _slowed(enabled=True)

    assert without.moves_done == 0
    assert not any(record.moves for record in without.records)
    moved = [record for record in rebalanced.records if record.moves]
    assert moved
    # A move is counted where it is asked for, where it is done and where it is answered.
    assert rebalanced.moves_done == sum(record.moves for record in moved)
    # At most once each, away from the slow instance as a rule.
    assert all(record.moves == 1 and record.reason == "moved" for record in moved)
    assert any(record.instance != "worker-1" for record in moved)
    # The queue of the slow instance alone is over a quarter of all requests: p90 tells whether it moved.
    assert p90(rebalanced.records) < 0.6 * p90(without.records)
