"""`python -m bench.peers`: run what is asked for, write docs/benchmarks.md, its plots and the README's table."""

import argparse
import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from bench.peers.arena import DUALMAP
from bench.peers.bounds import find_bounds
from bench.peers.config import FULL, QUICK, SUBJECTS, WORKLOADS, Effort
from bench.peers.goodput import fleets, goodput, tried_settings, try_settings
from bench.peers.overhead import SUBJECTS as OVERHEAD_SUBJECTS
from bench.peers.overhead import measure
from bench.peers.page import Results, write
from bench.peers.peer_process import missing
from bench.peers.peers import PEERS
from bench.peers.schedule import Runs
from bench.peers.settings import COMPARED, peer_of
from bench.router.measures import Findings
from bench.router.report import this_machine

_ROOT = Path(__file__).parents[2]
_OVERHEAD = _ROOT / "build/bench-peers-overhead.json"
PARTS = (*WORKLOADS, "overhead", "fleet")
"""What is run unless asked otherwise; "settings" is run on request."""


async def _run(
    parts: list[str],
    subjects: list[str],
    effort: Effort,
    trace: str | None,
    tries: int,
    doubtful: bool,
    out: Path,
) -> None:
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s  {what}", file=sys.stderr, flush=True)

    runs = Runs(_ROOT / "build/bench-peers.jsonl", effort.jobs, say, tries, doubtful)
    results = Results(this_machine(), effort, trace is not None, overhead=_kept_overhead())
    # The overhead first: it wants the machine for itself, and is short.
    if "overhead" in parts:
        names = [name for name in OVERHEAD_SUBJECTS if name in subjects]
        results.overhead = await measure(effort, names)
        _OVERHEAD.parent.mkdir(exist_ok=True)
        _OVERHEAD.write_bytes(msgspec.json.encode(results.overhead))
    for workload in WORKLOADS:
        if workload in parts:
            found = await goodput(workload, subjects, effort, trace, runs)
            if any(found.curves.values()):
                results.goodput[workload] = found
                results.bounds[workload] = await asyncio.to_thread(find_bounds, workload, effort, trace)
    if "fleet" in parts:
        results.fleets = await fleets(subjects, effort, trace, runs)
    if "settings" in parts:
        await try_settings(effort, trace, runs, [name for name in COMPARED if not missing(peer_of(name))])
    results.settings = tried_settings(effort, trace, runs)
    write(results, out)
    say(f"wrote {out}")


def _kept_overhead() -> Findings | None:
    """What was measured last, for a page of the other parts."""
    return msgspec.json.decode(_OVERHEAD.read_bytes(), type=Findings) if _OVERHEAD.exists() else None


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--trace", default="", help="Mooncake's conversation trace; generated without it")
    parser.add_argument("--parts", default=",".join(PARTS), help="default %(default)s; also settings")
    parser.add_argument("--subjects", default="", help="only these, by name; dualmap, oracle and the peers'")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that all of it runs")
    parser.add_argument("--full", action="store_true", help="more requests, fewer at a time")
    parser.add_argument("--jobs", type=int, help="runs side by side")
    parser.add_argument("--count", type=int, help="requests a run")
    parser.add_argument(
        "--tries",
        type=int,
        default=2,
        help="of a run that the machine spoils; 0 only shows what is kept; default %(default)s",
    )
    parser.add_argument(
        "--doubtful", action="store_true", help="take kept runs as they are, doubtful ones too"
    )
    parser.add_argument("--out", type=Path, default=_ROOT / "build/bench-peers")
    given = parser.parse_args()
    if given.trace and not Path(given.trace).is_file():
        sys.exit(f"no trace at {given.trace!r}")
    subjects = given.subjects.split(",") if given.subjects else list(SUBJECTS)
    able = []
    for name in subjects:
        why = None if name == DUALMAP else missing(PEERS[name])
        if why is None:
            able.append(name)
        else:
            print(f"left out: {name}: {why}", file=sys.stderr)
    effort = QUICK if given.quick else FULL if given.full else Effort()
    effort = replace(effort, jobs=given.jobs or effort.jobs, count=given.count or effort.count)
    asyncio.run(
        _run(
            given.parts.split(","), able, effort, given.trace or None, given.tries, given.doubtful, given.out
        )
    )


if __name__ == "__main__":
    main()
