"""`python -m bench.fidelity`: run both, print the table and the verdict, exit 0 whatever it says."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.fidelity.cell import HOP_S, POLICIES, RATES_REQ_S, Cell
from bench.fidelity.compare import LIMIT, Comparison, compare
from bench.fidelity.live import run_live
from bench.fidelity.report import text
from bench.router.report import this_machine

_WARM_UP, _COUNT = 60, 300
_QUICK_WARM_UP, _QUICK_COUNT = 40, 120


async def _run(cells: list[Cell], done: Callable[[list[Comparison]], None]) -> list[Comparison]:
    """Cell by cell; `done` is called after each."""
    comparisons: list[Comparison] = []
    for number, cell in enumerate(cells, 1):
        print(
            f"{number} of {len(cells)}: {cell.policy} at {cell.rate_req_s:g}/s ...",
            file=sys.stderr,
            flush=True,
        )
        requests = cell.requests()
        comparisons.append(compare(cell, requests, await run_live(cell, requests)))
        done(comparisons)
    return comparisons


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the middle rate only, with fewer requests")
    parser.add_argument(
        "--policies", default=",".join(POLICIES), help="of the live router's; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the workload")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    given = parser.parse_args()
    rates = RATES_REQ_S[1:2] if given.quick else RATES_REQ_S
    warm_up, count = (_QUICK_WARM_UP, _QUICK_COUNT) if given.quick else (_WARM_UP, _COUNT)
    cells = [
        Cell(policy, rate, warm_up, count, given.seed)
        for policy in given.policies.split(",")
        for rate in rates
    ]
    machine = this_machine()

    def write(comparisons: list[Comparison]) -> None:
        if given.json is None:
            return
        whole = {
            "machine": machine,
            "limit": LIMIT,
            "hop_s": HOP_S,
            "agrees": all(one.agrees for one in comparisons),
            "comparisons": comparisons,
        }
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))

    comparisons = asyncio.run(_run(cells, write))
    print(
        f"{machine.date}  {machine.cpu}, {machine.cores} cores shared by all; load {machine.load_before:.1f} before"
    )
    print(text(comparisons))


if __name__ == "__main__":
    main()
