"""What looking costs a router: `python -m bench.page.stall`, over 64 real instances, at two snapshots a second.

A router of this process joins the pool, so that its event loop can be watched from inside: the CPU of a snapshot, and
how long the loop was held up at most while one was made, beside the same without.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.page.pools import big_pool
from dualmap_cli.stack import Stack
from dualmap_router.app import RouterApp
from dualmap_router.settings import RouterSettings
from dualmap_router.ui.pages import LivePages
from dualmap_router.ui.snapshot import Snapshots
from dualmap_service.child import start_child
from dualmap_service.ports import free_ports
from tests.waiting import eventually

_TICK_S = 0.001
_SECONDS = 15


async def _lags(seconds: float) -> list[float]:
    """How late each tick of a millisecond came, sorted."""
    lags, until_s = [], time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < until_s:
        await asyncio.sleep(_TICK_S)
        lags.append(time.perf_counter() - began_s - _TICK_S)
    return sorted(lags)


async def _look(snapshots: Snapshots, cpu_s: list[float], sizes: list[int]) -> None:
    while True:
        began_s = time.thread_time()
        sizes.append(len(await snapshots.current()))
        cpu_s.append(time.thread_time() - began_s)
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _load(port: int, stack: Stack) -> AsyncIterator[None]:
    """A process of its own sends a little: what is measured must not share its loop."""
    command = [sys.executable, "-m", "dualmap_cli", "load", "--url", f"http://127.0.0.1:{port}"]
    command += ["--workload", "chat", "--requests", "100000", "--rate", "8"]
    child = start_child(command, "load", stack.logs / "load.log")
    try:
        yield
    finally:
        await child.stop()


async def main() -> None:
    """Measure, and print."""
    async with big_pool() as stack:
        stop = asyncio.Event()
        port = free_ports()
        app = RouterApp(
            RouterSettings(redis_url=stack.redis_url, pool="demo", port=port, router_id="bench"), stop
        )
        running = asyncio.create_task(app.run())
        await eventually(lambda: len(app.placement.usable) == 64)
        pages = app.api._pages
        assert isinstance(pages, LivePages)
        async with _load(port, stack):
            await asyncio.sleep(10)
            idle = await _lags(_SECONDS)
            cpu_s: list[float] = []
            sizes: list[int] = []
            looking = asyncio.create_task(_look(pages._snapshots, cpu_s, sizes))
            looked = await _lags(_SECONDS)
            looking.cancel()
        stop.set()
        await running
    for name, lags in (("nobody looks", idle), ("two snapshots a second", looked)):
        p99, most = lags[int(len(lags) * 0.99)], lags[-1]
        print(
            f"{name}: the loop's lag is {p99 * 1e3:.1f} ms at the 99th percentile, {most * 1e3:.1f} ms at most"
        )
    cpu_s.sort()
    # All that ran on the loop meanwhile is in it: the router's own polling too.
    print(
        f"a snapshot: {cpu_s[len(cpu_s) // 2] * 1e3:.1f} ms of CPU (median of {len(cpu_s)}), {sizes[-1]} bytes"
    )


if __name__ == "__main__":
    asyncio.run(main())
