"""A long prompt that is late anyway runs alone on an instance; short ones come and are answered in time."""

from dataclasses import dataclass, replace

import msgspec
import pytest

from dualmap_cli.load import RequestRecord
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.engine import EngineProfile
from dualmap_sim.workloads import TimedRequest

from ..otlp_receiver import Receiver
from ..waiting import eventually
from .load_checks import (
    Books,
    assert_answered,
    assert_at_rest,
    books,
    fetch,
    metric,
    prompts,
    rebalancer_url,
    replay,
    with_headers,
)

LONG_TOKENS, SHORT_TOKENS, NUM_SHORT, OUTPUT_TOKENS = 100_000, 1000, 10, 2
PROFILE = EngineProfile(max_num_batched_tokens=2048)
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Run:
    long: RequestRecord
    short: list[RequestRecord]
    long_books: Books
    preemptions: float
    busy_s: float
    """Model seconds that the engine computed for all of them."""


def workload() -> list[TimedRequest]:
    """22 s of prefill at once, then a tenth of a second of it every one and a half."""
    [long] = prompts("long", 1.0, 1, LONG_TOKENS, OUTPUT_TOKENS)
    traced = with_headers([replace(long, at_s=0.0)], traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    short = prompts("short", 1.0, NUM_SHORT, SHORT_TOKENS, OUTPUT_TOKENS)
    return traced + [replace(request, at_s=2.0 + 1.5 * number) for number, request in enumerate(short)]


async def run(preempt: bool, trace_endpoint: str = "") -> Run:
    options = StackOptions(
        routers=1,
        workers=1,
        time_scale=4.0,
        engine_flags=("--max-num-batched-tokens", str(PROFILE.max_num_batched_tokens)),
        worker_flags={"preempt": preempt, "step_tokens": PROFILE.max_num_batched_tokens},
        trace_endpoint=trace_endpoint,
    )
    async with Stack(options) as stack:
        # The worker learns how fast this engine is.
        await replay(stack, prompts("warm", 8.0, 12, 4000, OUTPUT_TOKENS))
        [url] = stack.engine_urls
        warm_s = msgspec.json.decode(await fetch(f"{url}/admin/stats"))["busy_s"]
        result = await replay(stack, workload())
        assert_answered(result.records)
        [long] = [record for record in result.records if record.request_id.endswith("long-0")]
        found = Run(
            long=long,
            short=[record for record in result.records if record is not long],
            long_books=(await books(stack))[long.request_id],
            preemptions=await metric(
                await rebalancer_url(stack), "dualmap_rebalancer_preemptions_total", instance="worker-1"
            ),
            busy_s=msgspec.json.decode(await fetch(f"{url}/admin/stats"))["busy_s"] - warm_s,
        )
        await assert_at_rest(stack)
    return found


async def test_short_ones_are_in_time_and_the_long_one_is_answered_once() -> None:
    collector = Receiver()
    port = await collector.start("127.0.0.1:0")
    try:
        found = await run(preempt=True, trace_endpoint=f"http://127.0.0.1:{port}")
        spans = await eventually(
            lambda: (
                any(s.name == "engine" for s in collector.trace(TRACE))
                and sorted(collector.trace(TRACE), key=lambda s: s.start_ns)
            )
        )
    finally:
        await collector.stop()
    assert all(record.within_slo for record in found.short), [record.ttft_s for record in found.short]
    # Started once more than it was stopped, and each of them is counted.
    times = round(found.preemptions)
    assert times >= 3
    assert found.long_books == Books(started=times + 1, finished=1, aborted=times)
    # All that it computed before is found again: beyond its own prompt a step and a block per run at most.
    own_s = PROFILE.prefill_s(LONG_TOKENS) + NUM_SHORT * PROFILE.prefill_s(SHORT_TOKENS)
    decode_s = (NUM_SHORT + 1) * OUTPUT_TOKENS * (PROFILE.decode_step_s + PROFILE.decode_s_per_seq)
    block_s = PROFILE.prefill_s(PROFILE.block_size, LONG_TOKENS)
    assert found.busy_s <= own_s + decode_s + times * block_s + PROFILE.prefill_chunk_s(2048, LONG_TOKENS)
    assert found.long.cached_tokens is not None
    assert found.long.cached_tokens > LONG_TOKENS // 4
    # In its trace it waits and runs in turns.
    turns = [span.name for span in spans if span.name in ("queue", "engine")]
    assert turns == ["queue", "engine"] * (times + 1)
    assert sum("preempted" in span.events for span in spans) == times


async def test_without_preemption_the_short_ones_wait_for_the_long_one() -> None:
    found = await run(preempt=False)
    assert (found.preemptions, found.long_books) == (0, Books(started=1, finished=1))
    assert sum(record.within_slo for record in found.short) < NUM_SHORT // 2
    assert found.long.ttft_s is not None
    assert found.long.ttft_s == pytest.approx(PROFILE.prefill_s(LONG_TOKENS), rel=0.3)
