"""`python -m bench.router`: measure, print the table, exit 0 whatever it says."""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from bench.router.decisions import decisions
from bench.router.measures import QUICK, Effort, Findings, memory, streamed_answers, whole_answers
from bench.router.report import TARGETS, text, this_machine
from bench.router.subjects import LABELS, running

# An answer takes an engine well under a millisecond: its own speed stays out of the way.
_FAST = 50.0
# The fast profile's step of about 1.03 ms, stretched to the 20 ms of 50 tokens a second.
_PACED = 0.0516


async def _measure(effort: Effort) -> Findings:
    findings = Findings()
    flags = ("--profile", "fast")
    _say("non-streamed requests")
    async with running(_FAST, flags) as bench:
        await whole_answers(bench, effort, findings)
        _say(f"memory over {effort.prompts:,} prompts")
        await memory(bench, effort, findings)
    _say("streams")
    async with running(_PACED, flags) as bench:
        await streamed_answers(bench, effort, findings)
    _say("the decision by rate and distance")
    await decisions(_FAST, flags, effort, findings)
    return findings


def _say(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.router", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter windows and fewer prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    given = parser.parse_args()
    effort = QUICK if given.quick else Effort()
    machine = this_machine()
    findings = asyncio.run(_measure(effort))
    print(text(machine, effort, findings))
    if given.json is not None:
        whole = {
            "machine": machine,
            "effort": effort,
            "subjects": LABELS,
            "targets": TARGETS,
            "findings": findings,
        }
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))


if __name__ == "__main__":
    main()
