"""examples/chat.py, the client that compose.yaml's `load` profile has, on the real system."""

import asyncio
import sys

from dualmap_cli.stack import Stack

from ..metric_list import ROOT
from .conftest import leftovers


async def chat(*args: str) -> tuple[int | None, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "examples/chat.py", *args, cwd=ROOT, stdout=pipe, stderr=pipe
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_it_streams_an_answer_and_says_where_it_came_from(system: Stack) -> None:
    status, out, err = await chat("--url", system.router_urls[0], "hello")
    assert status == 0, err
    answer, *told = out.splitlines()
    assert answer
    facts = dict(line.split(maxsplit=1) for line in told)
    assert facts["instance"] in facts["candidates"].split(",")
    assert (await leftovers(system)).clean


async def test_it_repeats_what_the_router_complains_of(system: Stack) -> None:
    status, _, err = await chat("--url", system.router_urls[0], "--model", "none-of-ours", "hello")
    assert status == 1
    assert "none-of-ours" in err
    assert "Traceback" not in err
