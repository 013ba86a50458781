"""A steady load for long: do memory, descriptors and keys stay flat? `make soak ARGS='--minutes 30'`."""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import psutil

from dualmap_cli.load import LoadOptions, LoadResult, Slo, run_load
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload
from dualmap_wire.redis_keys import PoolKeys

from ..integration.load_checks import MODEL, prompts, says_its_own_answer
from .rest import Footprint, settle
from .world import OPTIONS, World

_KV_BLOCKS = 1500
_WARM_SHARE = 1 / 3
"""The first part of the run, in which caches fill up and allocators settle."""
_GROWS = {"RSS MB": (2.0, 0.05), "fds": (4.0, 0.1), "store keys": (50.0, 0.2), "store MB": (2.0, 0.1)}
"""By measure: growth over the rest of the run that may be noise, absolute and as a share; both must be passed."""

Series = dict[tuple[str, str], list[tuple[float, float]]]
"""(seconds, value) samples by measure and part."""


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Least-squares growth per second."""
    mean_s, mean = fmean(s for s, _ in samples), fmean(value for _, value in samples)
    spread = sum((s - mean_s) ** 2 for s, _ in samples)
    return sum((s - mean_s) * (value - mean) for s, value in samples) / spread if spread else 0.0


def flat(measure: str, samples: Sequence[tuple[float, float]]) -> tuple[bool, float]:
    """Whether a series does not grow after the warm-up, and by how much it grows over that time.

    What leaks grows in both halves of it, and the slower half counts. What grows once does not leak: the leader's first
    move, which may come late, starts its gRPC with a channel to every worker.
    """
    end_s = samples[-1][0]
    warm = [(s, value) for s, value in samples if s >= end_s * _WARM_SHARE]
    middle = len(warm) // 2
    growth = min(slope(warm[:middle]), slope(warm[middle:])) * (warm[-1][0] - warm[0][0])
    least, share = _GROWS[measure]
    return growth <= max(least, share * warm[0][1]), growth


async def sample(world: World, series: Series, at_s: float) -> None:
    """Take every measure of every part."""
    taken = Footprint.of(world)
    for name, rss in taken.rss.items():
        series["RSS MB", name].append((at_s, rss / 2**20))
    for name, fds in taken.fds.items():
        series["fds", name].append((at_s, float(fds)))
    async with world.redis() as redis:
        info = await redis.info("memory")
        keys = PoolKeys(world.options.pool)
        # What grows inside keys counts as much as keys.
        entries = [int(await redis.hlen(keys.key("keys", part))) for part in ("current", "older")]
        entries += [int(await redis.zcard(keys.own(worker))) for worker in world.workers]
        series["store keys", "store"].append((at_s, float(await redis.dbsize())))
        series["store MB", "store"].append((at_s, info["used_memory"] / 2**20))
    series["entries", "store"].append((at_s, float(sum(entries))))


def workloads(rate_req_s: float, seconds: float) -> list[tuple[list[TimedRequest], bool]]:
    """Conversations that start anew all the time, prompts that never come again, and whole answers."""
    shape = {
        "system_tokens": 1024,
        "user_tokens": 60,
        "answer_tokens": 40,
        "think_s": 10,
        "system_prompts": 200,
    }
    chats = make_workload("chat", Traffic(rate_req_s * 0.6, duration_s=seconds, seed=7), shape)
    rare = prompts("soak", rate_req_s * 0.2, int(rate_req_s * 0.2 * seconds), 1200, 30)
    wholes = prompts("soakwhole", rate_req_s * 0.2, int(rate_req_s * 0.2 * seconds), 600, 20, seed=2)
    return [(chats, True), (rare, True), (wholes, False)]


async def load(world: World, rate_req_s: float, seconds: float) -> list[LoadResult]:
    """Send it all and check every text."""

    def options(stream: bool) -> LoadOptions:
        return LoadOptions(
            model=MODEL,
            stream=stream,
            slo=Slo(world.options.slo_s),
            extra_body={"ignore_eos": True},
            check=says_its_own_answer,
        )

    runs = (
        run_load(requests, world.router_urls, options(stream))
        for requests, stream in workloads(rate_req_s, seconds)
    )
    return await asyncio.gather(*runs)


async def soak(minutes: float, rate_req_s: float, every_s: float) -> bool:
    """Run it; true if everything is flat, answered and at rest."""
    series: Series = defaultdict(list)
    seconds = minutes * 60
    # What a worker knows of its engine's cache grows until that is full: let it be full soon.
    options = replace(OPTIONS, engine_flags=("--kv-blocks", str(_KV_BLOCKS)))
    async with World(options) as world:
        await world.whole()
        before = Footprint.of(world)
        began_s = time.monotonic()
        psutil.cpu_percent()
        running = asyncio.create_task(load(world, rate_req_s, seconds))
        # Late answers come after the last arrival: what they hold is not the steady state.
        while not running.done() and time.monotonic() - began_s < seconds:
            await sample(world, series, time.monotonic() - began_s)
            await asyncio.wait((running,), timeout=every_s)
        busy = psutil.cpu_percent()
        results = await running
        left = await settle(world, before)
    reports = [result.report for result in results]
    sent, answered = sum(r.sent for r in reports), sum(r.answered for r in reports)
    duplicates = sum(r.duplicates for r in reports)
    print(f"{minutes:g} minutes, {rate_req_s:g} requests/s, machine {busy:.0f} % busy")
    print(f"sent {sent}, answered right and once {answered - duplicates}, left {left or 'nothing'}\n")
    for record in (record for result in results for record in result.records if not record.ok):
        print(f"  at {record.due_s:.1f} s {record.request_id}: {record.error} {record.detail or ''}")
    return print_table(series) and sent == answered and not duplicates and not left


def print_table(series: Series) -> bool:
    """Every series in a line; true if all are flat.

    A simulated engine's memory is told and not judged: it keeps books of 50,000 requests and 10,000 event batches.
    """
    print(f"{'measure':12}{'part':14}{'first':>10}{'warm':>10}{'last':>10}{'growth':>10}")
    all_flat = True
    for (measure, part), samples in sorted(series.items()):
        warm = next(value for s, value in samples if s >= samples[-1][0] * _WARM_SHARE)
        line = f"{measure:12}{part:14}{samples[0][1]:10.1f}{warm:10.1f}{samples[-1][1]:10.1f}"
        if measure not in _GROWS or (measure == "RSS MB" and part.startswith("engine")):
            print(line)
            continue
        is_flat, growth = flat(measure, samples)
        all_flat &= is_flat
        print(f"{line}{growth:10.1f}  {'flat' if is_flat else 'GROWS'}")
    return all_flat


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="How long the load lasts.")
    parser.add_argument("--rate", type=float, default=10.0, help="Requests per second.")
    parser.add_argument("--every", type=float, default=10.0, help="Seconds between samples.")
    args = parser.parse_args()
    sys.exit(not asyncio.run(soak(args.minutes, args.rate, args.every)))


if __name__ == "__main__":
    main()
