"""The publisher's pace."""

import asyncio
import time
from itertools import pairwise

from dualmap_service.curve import InTheClear
from dualmap_wire.telemetry import QueueReport
from dualmap_worker.telemetry import Publisher

from ...waiting import eventually
from .test_curve import REPORT


async def test_a_report_that_takes_long_comes_more_rarely() -> None:
    publisher = Publisher("127.0.0.1", 0, InTheClear())
    began_s: list[float] = []

    def slow() -> QueueReport:
        began_s.append(time.perf_counter())
        time.sleep(0.04)  # it is computing
        publisher.changed()
        return REPORT

    running = asyncio.create_task(publisher.run(slow, 0.1))
    try:
        await eventually(lambda: len(began_s) >= 4)
    finally:
        running.cancel()
        publisher.close()
    gaps = [later_s - earlier_s for earlier_s, later_s in pairwise(began_s)]
    assert min(gaps) >= 10 * 0.04 * 0.95
