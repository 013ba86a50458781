"""The publisher's pace."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

from dualmap_service.curve import InTheClear
from dualmap_wire.telemetry import QueueReport
from dualmap_worker.telemetry import Publisher

from ...waiting import eventually
from .test_curve import REPORT


@asynccontextmanager
async def publishing(report: Callable[[], QueueReport]) -> AsyncIterator[Publisher]:
    """Ten times a second."""
    publisher = Publisher("127.0.0.1", 0, InTheClear())
    running = asyncio.create_task(publisher.run(report, 0.1))
    try:
        yield publisher
    finally:
        running.cancel()
        publisher.close()


async def test_a_report_that_takes_long_comes_more_rarely() -> None:
    began_s: list[float] = []

    def slow() -> QueueReport:
        began_s.append(time.perf_counter())
        until_s = time.thread_time() + 0.04
        while time.thread_time() < until_s:
            pass
        publisher.changed()
        return REPORT

    async with publishing(slow) as publisher:
        await eventually(lambda: len(began_s) >= 4)
    gaps = [later_s - earlier_s for earlier_s, later_s in pairwise(began_s)]
    assert min(gaps) >= 10 * 0.04 * 0.95


async def test_a_process_that_was_frozen_in_a_report_is_heard_again_at_once() -> None:
    ended_s: list[float] = []

    def frozen_at_first() -> QueueReport:
        if not ended_s:
            time.sleep(1.0)  # as SIGSTOP and a suspended machine do it: no time of its own passes
        ended_s.append(time.perf_counter())
        return REPORT

    async with publishing(frozen_at_first):
        await eventually(lambda: len(ended_s) >= 2)
    assert ended_s[1] - ended_s[0] < 5.0, "not nine times as long as it was frozen"
