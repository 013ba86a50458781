"""The demo: a real workload through the whole system, with a hotspot in the middle, and what came of it.

In the middle third one prefix turns hot, and one engine behind which requests wait turns ten times slower, which no
router can foresee: they are moved. Afterwards the books are checked: every request answered
once with the right text, and nothing left anywhere.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from redis.asyncio import Redis

from dualmap_cli.leftovers import Leftovers, settle
from dualmap_cli.load import LoadOptions, LoadReport, LoadResult, Slo, run_load
from dualmap_cli.load.progress import Progress
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.engine.canonical import answers
from dualmap_sim.workloads import Hotspot, TimedRequest, Traffic, add_hotspot, make_workload
from dualmap_sim.workloads.mooncake import TraceReading, read_mooncake
from dualmap_wire.redis_keys import PoolKeys

_MODEL = "sim-model"
_SLOW_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What to show. Seconds are model seconds."""

    trace: Path | None = None
    requests: int = 1200
    rate_req_s: float = 4.0
    time_scale: float = 5.0
    slo_s: float = 5.0
    seed: int = 1
    routers: int = 2
    instances: int = 4
    policy: str = "dualmap"
    rebalance: bool = True
    hotspot: bool = True


class DemoSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's result: the load report's main figures, and the books."""

    sent: int
    answered: int
    errors: int
    duplicates: int
    """Requests that engines answered more than once, or that the client saw answered twice."""
    moves: int
    escapes: int
    within_slo_share: float | None
    ttft_s: dict[str, float | None]
    ttft_error_s: dict[str, float | None]
    cached_token_share: float | None
    per_instance: list[dict[str, Any]]
    reasons: dict[str, int]
    errors_by_kind: dict[str, int]
    duration_s: float
    leftover: Leftovers
    load: LoadReport

    @property
    def sound(self) -> bool:
        """Everything answered once, and nothing left."""
        return self.sent == self.answered and not self.errors and not self.duplicates and self.leftover.clean


def demo_requests(options: DemoOptions) -> list[TimedRequest]:
    """The demo's workload: a trace, or conversations with a burst on one hot prefix."""
    if options.trace is not None:
        reading = TraceReading(count=options.requests, rate_req_s=options.rate_req_s)
        return read_mooncake(options.trace, reading)
    shape = {"user_tokens": 4500, "answer_tokens": 40}
    requests = make_workload("chat", Traffic(options.rate_req_s, options.requests, None, options.seed), shape)
    return add_hotspot(requests, Hotspot(share=0.5), options.seed) if options.hotspot else requests


def stack_options(options: DemoOptions) -> StackOptions:
    """The system that the demo runs on."""
    return StackOptions(
        routers=options.routers,
        workers=options.instances,
        time_scale=options.time_scale,
        slo_s=options.slo_s,
        engine_flags=("--model", _MODEL),
        router_flags={"policy": options.policy},
        rebalancer_flags={"enabled": str(options.rebalance).lower()},
    )


async def run_demo(
    options: DemoOptions,
    said: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    stop: asyncio.Event,
) -> DemoSummary:
    """Start the system, replay the workload, check the books, stop the system."""
    requests = demo_requests(options)
    async with Stack(stack_options(options), said) as stack:
        said(f"page       {stack.router_urls[0]}/ (while this runs)")
        said(
            f"replaying {len(requests)} requests over {requests[-1].at_s / options.time_scale:.0f} s "
            f"({options.time_scale:g} model seconds a second)"
        )
        load_options = LoadOptions(
            model=_MODEL,
            time_scale=options.time_scale,
            slo=Slo(ttft_s=options.slo_s),
            # Answers take as long as they take here: nothing is cut off.
            extra_body={"ignore_eos": True},
            check=_right_text,
        )
        trouble = asyncio.create_task(_trouble(stack, options, requests, said))
        try:
            result = await run_load(requests, stack.router_urls, load_options, on_progress, stop)
        finally:
            trouble.cancel()
            await asyncio.gather(trouble, return_exceptions=True)
        left = await settle(stack.redis_url, stack.options.pool, stack.router_urls)
        answered_twice = await _engine_duplicates(stack)
    return _summary(result, left, answered_twice)


def _right_text(request: TimedRequest, text: str) -> bool:
    """The simulated engine's answer is a function of the prompt."""
    return answers(msgspec.json.decode(request.body(_MODEL)), text)


async def _trouble(
    stack: Stack, options: DemoOptions, requests: Sequence[TimedRequest], said: Callable[[str], None]
) -> None:
    """Slow one engine down for a while in the middle, one behind which requests wait."""
    if not options.hotspot:
        return
    last_s = requests[-1].at_s / options.time_scale
    await asyncio.sleep(last_s * 0.40)
    worker = await _busy_worker(stack, options.slo_s / options.time_scale / 2, last_s * 0.10)
    url = stack.engine_urls[worker - 1]
    said(f"worker-{worker}'s engine turns {_SLOW_FACTOR:g} times slower")
    try:
        await _post(f"{url}/admin/faults", {"slow_down": _SLOW_FACTOR})
        await asyncio.sleep(last_s * 0.20)
    finally:
        await asyncio.shield(_post(f"{url}/admin/faults", {"slow_down": 1.0}))
    said(f"worker-{worker}'s engine is itself again")


async def _busy_worker(stack: Stack, booked_s: float, patience_s: float) -> int:
    """The number of a worker with that much prefill work booked, or of the busiest when none has it in time."""
    clock = asyncio.get_running_loop().time
    until_s = clock() + patience_s
    redis: Any = Redis.from_url(stack.redis_url)  # its stub does not know that replies are bytes here
    try:
        while True:
            booked: Counter[str] = Counter()
            for name, micros in (await redis.hgetall(PoolKeys(stack.options.pool).charges)).items():
                booked[name.decode()[2:]] += int(micros)
            busiest, most = max(booked.items(), key=lambda item: item[1], default=("worker-1", 0))
            if most / 1e6 >= booked_s or clock() > until_s:
                return int(busiest.rpartition("-")[2])
            await asyncio.sleep(0.02)
    finally:
        await redis.aclose()


async def _post(url: str, body: dict[str, Any]) -> None:
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
        response.raise_for_status()


async def _engine_duplicates(stack: Stack) -> int:
    """Requests that engines finished more than once, over all of them."""
    finished: Counter[str] = Counter()
    async with aiohttp.ClientSession() as http:
        for url in stack.engine_urls:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{url}/admin/stats") as response:
                    stats = await response.json()
                for request_id, record in stats["requests"].items():
                    finished[request_id] += record["finished"]
    return sum(count - 1 for count in finished.values() if count > 1)


def _summary(result: LoadResult, left: Leftovers, answered_twice: int) -> DemoSummary:
    report = result.report
    return DemoSummary(
        sent=report.sent,
        answered=report.answered,
        errors=report.errors,
        duplicates=report.duplicates + answered_twice,
        moves=report.moves,
        escapes=report.escapes,
        within_slo_share=report.within_slo_share,
        ttft_s=msgspec.structs.asdict(report.ttft_s),
        ttft_error_s=msgspec.structs.asdict(report.ttft_error_s),
        cached_token_share=report.cached_token_share,
        per_instance=[msgspec.structs.asdict(instance) for instance in report.per_instance],
        reasons=report.reasons,
        errors_by_kind=report.errors_by_kind,
        duration_s=report.duration_s,
        leftover=left,
        load=report,
    )
