"""A cell on the live system: two routers, simulated engines, a rebalancer and a real Valkey, as processes."""

import os
import time
from dataclasses import dataclass

from bench.fidelity.cell import (
    KV_BLOCKS,
    NUM_INSTANCES,
    NUM_ROUTERS,
    PASS_S,
    POOL,
    PROFILE,
    REPORT_S,
    SLO_S,
    Cell,
)
from bench.fidelity.outcome import Seen
from bench.router.clocks import cpu_s, machine_time
from dualmap_cli.load import LoadOptions, RequestRecord, Slo, run_load
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.workloads import TimedRequest

_MODEL = "sim-model"
_BUSY_LIMIT = 0.85
_LAG_LIMIT_S = 0.05


class LiveRunError(RuntimeError):
    """The live system failed a request: there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Every request's outcome, in order of arrival, and how busy the machine was."""

    seen: list[Seen]
    busy_share: float
    """Of all cores, by whatever runs here."""
    own_share: float
    """Of all cores, by this system and its load generator."""
    lag_p99_s: float
    """How late the generator sent."""

    @property
    def doubt(self) -> str | None:
        """Why the machine may have been measured instead."""
        if self.busy_share > _BUSY_LIMIT:
            return f"all cores were {self.busy_share:.0%} busy, {self.own_share:.0%} by this system"
        if self.lag_p99_s > _LAG_LIMIT_S:
            return f"requests left up to {self.lag_p99_s * 1e3:.0f} ms late (p99)"
        return None


def _options(cell: Cell) -> StackOptions:
    return StackOptions(
        routers=NUM_ROUTERS,
        workers=NUM_INSTANCES,
        slo_s=SLO_S,
        pool=POOL,
        engine_flags=(
            "--model",
            _MODEL,
            "--block-size",
            str(PROFILE.block_size),
            "--kv-blocks",
            str(KV_BLOCKS),
        ),
        # No bound: the simulated routers turn nobody away.
        router_flags={"policy": cell.policy, "max_wait_s": 0},
        worker_flags={"report_period_s": REPORT_S},
        rebalancer_flags={"period_s": PASS_S},
    )


async def run_live(cell: Cell, requests: list[TimedRequest]) -> LiveRun:
    """Start the system, replay the workload through both routers in turn, stop the system."""
    async with Stack(_options(cell)) as stack:
        options = LoadOptions(model=_MODEL, slo=Slo(ttft_s=SLO_S), extra_body={"ignore_eos": True})
        began_s, before, own_before_s = time.monotonic(), machine_time(), _own_cpu_s(stack)
        result = await run_load(requests, stack.router_urls, options)
        busy_share = machine_time().share_since(before)
        own_s, wall_s = _own_cpu_s(stack) - own_before_s, time.monotonic() - began_s
    return LiveRun(
        [_seen(record) for record in result.records],
        busy_share=busy_share,
        own_share=own_s / wall_s / (os.cpu_count() or 1),
        lag_p99_s=result.report.lag_s.p99 or 0.0,
    )


def _seen(record: RequestRecord) -> Seen:
    if not record.ok or record.ttft_s is None or record.cached_tokens is None or record.instance is None:
        raise LiveRunError(f"{record.request_id}: {record.error or 'no usage'} {record.detail or ''}")
    return Seen(
        ttft_s=record.ttft_s,
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        instance=record.instance,
        moved=record.moves > 0,
        escaped=record.reason == "escape",
    )


def _own_cpu_s(stack: Stack) -> float:
    """CPU seconds of the system's processes and of this one."""
    assert stack.store is not None
    pids = [os.getpid(), stack.store.pid, *(child.pid for child in stack.children.values())]
    return sum(cpu_s(pid) for pid in pids)
