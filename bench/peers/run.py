"""One run: a subject at a rate on a workload, in front of engines that have just been started.

`python -m bench.peers.run TRIAL FILE` writes an Outcome: runs side by side must not share a client's process.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.peers.arena import MODEL, Arena, Setup, arena
from bench.peers.engines import FLAGS
from bench.peers.outcome import Outcome, cached_share, spread, ttft_percentiles, within_share
from bench.peers.peer_process import ArenaError
from bench.peers.workload import Source
from bench.router.clocks import MachineTime, cpu_s, machine_time
from dualmap_cli.load import LoadOptions, RequestRecord, Slo, run_load
from dualmap_service.child import start_child
from dualmap_sim.workloads import TimedRequest

AFTER_S = 30.0
"""How long after the last request a run goes on; with an SLO of 5 s it has long been decided by then."""


class Trial(msgspec.Struct, frozen=True):
    """What to run."""

    subject: str
    workload: str
    rate_req_s: float
    count: int
    trace: str | None = None
    time_scale: float = 2.0
    slo_s: float = 5.0
    routers: int = 1
    seed: int = 1
    changes: bool = False
    """Stop half of the routers after a third of the run, and start them again after two."""

    @property
    def source(self) -> Source:
        """Its workload."""
        return Source(self.workload, self.count, Path(self.trace) if self.trace else None, self.seed)


async def run_apart(trial: Trial) -> Outcome:
    """The same as `run_once` in a process of its own, which ends with this one."""
    with tempfile.TemporaryDirectory(prefix="dualmap-run-") as folder:
        answer = Path(folder) / "outcome.json"
        given = msgspec.json.encode(trial).decode()
        command = [sys.executable, "-m", "bench.peers.run", given, str(answer)]
        child = start_child(command, trial.subject, Path(folder) / "log")
        try:
            while await child.wait(60.0) is None:
                pass
            if child.process.returncode:
                raise ArenaError(child.log_tail())
            return msgspec.json.decode(answer.read_bytes(), type=Outcome)
        finally:
            await child.stop()


async def run_once(trial: Trial) -> Outcome:
    """Start all, send all, stop all."""
    requests = trial.source.requests(trial.rate_req_s)
    setup = Setup(trial.time_scale, trial.slo_s, FLAGS)
    async with arena(trial.subject, setup, trial.routers) as running:
        before = await running.stats()
        clocks = _Clocks(running, trial.changes)
        changing = asyncio.create_task(_change(trial, running, requests[-1].at_s / setup.time_scale))
        records = await _send(trial, running, requests, setup)
        await changing
        busy_share, own_share, router_s, wall_s = clocks.read()
        after = await running.stats()
        await running.at_rest()
    loads = _grown(before, after, "prefill_tokens")
    load_cv, load_max = spread(loads)
    lags_s = sorted(one.sent_s - one.due_s for one in records)
    prompt_tokens = sum(one.input_tokens for one in records if one.ttft_s is not None)
    return Outcome(
        subject=trial.subject,
        workload=trial.workload,
        rate_req_s=trial.rate_req_s,
        time_scale=trial.time_scale,
        routers=trial.routers,
        requests=len(records),
        errors=dict(Counter(one.error for one in records if one.error is not None)),
        within_slo_share=within_share(records),
        ttft_s=ttft_percentiles(records),
        cached_share=cached_share(prompt_tokens, round(sum(loads))),
        load_cv=load_cv,
        load_max=load_max,
        router_cpu_ms=router_s / len(records) * 1e3,
        lag_p99_s=lags_s[int(len(lags_s) * 0.99)],
        busy_share=busy_share,
        own_share=own_share,
        engine_lag_s=max(one["max_lag_s"] for one in after) * setup.time_scale,
        moves=sum(one.moves for one in records),
        escapes=sum(one.reason == "escape" for one in records),
        asked_again=sum(bool(one.retried) for one in records),
        changes=trial.changes,
        wall_s=wall_s,
    )


async def _change(trial: Trial, running: Arena, length_s: float) -> None:
    if not trial.changes:
        return
    going = running.routers[: len(running.routers) // 2]
    await asyncio.sleep(length_s / 3)
    await asyncio.gather(*(router.stop() for router in going))
    await asyncio.sleep(length_s / 3)
    await asyncio.gather(*(router.start() for router in going))


async def _send(
    trial: Trial, running: Arena, requests: Sequence[TimedRequest], setup: Setup
) -> list[RequestRecord]:
    options = LoadOptions(
        model=MODEL,
        time_scale=setup.time_scale,
        slo=Slo(ttft_s=setup.slo_s),
        extra_body={"ignore_eos": True},
        max_in_flight=100_000,
        # A client of several routers asks the next one when one is gone.
        retries=3 if trial.changes else 0,
    )
    stop = asyncio.Event()
    end_s = (requests[-1].at_s + AFTER_S) / setup.time_scale
    timer = asyncio.get_running_loop().call_later(end_s, stop.set)
    result = await run_load(requests, running.urls, options, stop=stop)
    timer.cancel()
    return result.records


def _grown(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(then[name] - now[name]) for now, then in zip(before, after, strict=True)]


class _Clocks:
    """CPU of this run's processes and of the machine, from its making to `read`."""

    def __init__(self, running: Arena, changes: bool) -> None:
        # Who is started again begins anew: a changing fleet's routers are left out.
        self._routers = [] if changes else [router.pid for router in running.routers]
        self._others = [os.getpid(), *running.others]
        self._began_s = time.monotonic()
        self._machine: MachineTime = machine_time()
        self._before = self._used()

    def read(self) -> tuple[float, float, float, float]:
        """Busy share of the machine, share of this run, routers' CPU seconds, wall seconds."""
        wall_s = time.monotonic() - self._began_s
        router_s, others_s = (now - then for now, then in zip(self._used(), self._before, strict=True))
        own_share = (router_s + others_s) / wall_s / (os.cpu_count() or 1)
        return machine_time().share_since(self._machine), own_share, router_s, wall_s

    def _used(self) -> tuple[float, float]:
        return sum(map(cpu_s, self._routers)), sum(map(cpu_s, self._others))


if __name__ == "__main__":
    asked, told = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run_once(msgspec.json.decode(asked, type=Trial)))
    Path(told).write_bytes(msgspec.json.encode(found))
