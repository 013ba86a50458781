"""One run: a subject at a rate on a workload, in front of engines that have just been started.

`python -m bench.peers.run` reads a Trial and prints an Outcome: runs side by side must not share a client's process.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.peers.arena import MODEL, ORACLE, Arena, Setup, arena
from bench.peers.oracle import Oracle
from bench.peers.outcome import Outcome, cached_share, spread, ttft_percentiles, within_share
from bench.peers.peer_process import ArenaError
from bench.peers.workload import Source
from bench.router.clocks import MachineTime, cpu_s, machine_time
from dualmap_cli.load import LoadOptions, RequestRecord, Slo, run_load
from dualmap_sim.engine import named_profile
from dualmap_sim.workloads import BLOCK_TOKENS, TimedRequest
from dualmap_sim.workloads.arrival import to_arrivals

AFTER_S = 30.0
"""How long after the last request a run goes on; with an SLO of 5 s it has long been decided by then."""
PROFILE = named_profile("linear").override(block_size=64, num_kv_blocks=6720, stream_interval=16)
"""10,000 prompt tokens a second; room for 430,080 tokens, as everywhere in this repository. Blocks of 64 tokens and
chunks of 16 keep the engines' own CPU low, for every router alike."""
_FLAGS = (
    "--profile", PROFILE.name,
    "--block-size", str(PROFILE.block_size),
    "--kv-blocks", str(PROFILE.num_kv_blocks),
    "--stream-interval", str(PROFILE.stream_interval),
)  # fmt: skip


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

    @property
    def source(self) -> Source:
        """Its workload."""
        return Source(self.workload, self.count, Path(self.trace) if self.trace else None, self.seed)


async def run_apart(trial: Trial) -> Outcome:
    """The same as `run_once` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.peers.run", stdin=-1, stdout=-1, stderr=-1
    )
    try:
        out, said = await process.communicate(msgspec.json.encode(trial))
    except asyncio.CancelledError:
        process.terminate()
        raise
    if process.returncode:
        raise ArenaError(
            f"{trial.subject} at {trial.rate_req_s:g}/s: {said.decode(errors='replace')[-2000:]}"
        )
    return msgspec.json.decode(out, type=Outcome)


async def run_once(trial: Trial) -> Outcome:
    """Start all, send all, stop all."""
    requests = trial.source.requests(trial.rate_req_s)
    setup = Setup(trial.time_scale, trial.slo_s, _FLAGS)
    async with arena(trial.subject, setup, trial.routers) as running:
        before = await running.stats()
        clocks = _Clocks(running)
        records = await _send(trial.subject, running, requests, setup)
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
        moves=sum(one.moves for one in records),
        escapes=sum(one.reason == "escape" for one in records),
        wall_s=wall_s,
    )


async def _send(
    subject: str, running: Arena, requests: Sequence[TimedRequest], setup: Setup
) -> list[RequestRecord]:
    options = LoadOptions(
        model=MODEL,
        time_scale=setup.time_scale,
        slo=Slo(ttft_s=setup.slo_s),
        extra_body={"ignore_eos": True},
        max_in_flight=100_000,
    )
    stop = asyncio.Event()
    end_s = (requests[-1].at_s + AFTER_S) / setup.time_scale
    timer = asyncio.get_running_loop().call_later(end_s, stop.set)
    parts = _parts(subject, running.urls, requests)
    results = await asyncio.gather(
        *(run_load(part, urls, options, stop=stop) for urls, part in parts if part)
    )
    timer.cancel()
    return [record for result in results for record in result.records]


def _parts(
    subject: str, urls: list[str], requests: Sequence[TimedRequest]
) -> list[tuple[list[str], list[TimedRequest]]]:
    """Who sends what where: everything to the routers by turns, or the oracle's choice to each engine."""
    if subject != ORACLE:
        return [(urls, list(requests))]
    oracle = Oracle(PROFILE, len(urls), BLOCK_TOKENS)
    parts: list[tuple[list[str], list[TimedRequest]]] = [([url], []) for url in urls]
    for request, arrival in zip(requests, to_arrivals(requests), strict=True):
        parts[oracle.place(arrival).index][1].append(request)
    return parts


def _grown(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(then[name] - now[name]) for now, then in zip(before, after, strict=True)]


class _Clocks:
    """CPU of this run's processes and of the machine, from its making to `read`."""

    def __init__(self, running: Arena) -> None:
        self._pids = {**running.pids, "client": [os.getpid()]}
        self._began_s = time.monotonic()
        self._machine: MachineTime = machine_time()
        self._before = self._used()

    def read(self) -> tuple[float, float, float, float]:
        """Busy share of the machine, share of this run, routers' CPU seconds, wall seconds."""
        wall_s = time.monotonic() - self._began_s
        used = {name: now - self._before[name] for name, now in self._used().items()}
        own_share = sum(used.values()) / wall_s / (os.cpu_count() or 1)
        return machine_time().share_since(self._machine), own_share, used["router"], wall_s

    def _used(self) -> dict[str, float]:
        return {name: sum(cpu_s(pid) for pid in pids) for name, pids in self._pids.items()}


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(run_once(given))))
