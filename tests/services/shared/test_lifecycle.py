"""A service's life: stop events, background loops that die, exit statuses."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from dualmap_service.child import start_child
from dualmap_service.lifecycle import Background, ServiceFailedError, every, wait_for

from ...waiting import eventually


async def test_every_runs_at_once_and_again() -> None:
    turns = 0

    async def step() -> None:
        nonlocal turns
        turns += 1

    background = Background(asyncio.Event())
    background.start(every(0.01, step), "turns")
    await eventually(lambda: turns >= 3)
    await background.close()
    seen = turns
    await asyncio.sleep(0.03)
    assert turns == seen


async def test_a_loop_that_dies_stops_the_service() -> None:
    stop = asyncio.Event()
    background = Background(stop)

    async def doomed() -> None:
        raise ValueError("no")

    async def healthy() -> None:
        await asyncio.Event().wait()

    background.start(healthy(), "healthy")
    background.start(doomed(), "doomed")
    assert await wait_for(stop, 5.0)
    with pytest.raises(ServiceFailedError, match="no"):
        await background.close()


async def test_a_loop_that_says_why_the_service_fails_is_taken_at_its_word() -> None:
    stop = asyncio.Event()
    background = Background(stop)

    async def taken() -> None:
        raise ServiceFailedError("the name is taken")

    background.start(taken(), "lease")
    assert await wait_for(stop, 5.0)
    with pytest.raises(ServiceFailedError, match=r"^the name is taken$"):
        await background.close()


async def test_a_loop_that_ends_is_no_failure() -> None:
    stop = asyncio.Event()
    background = Background(stop)
    await background.start(asyncio.sleep(0), "short")
    await background.close()
    assert not stop.is_set()


async def test_waiting_has_an_end() -> None:
    event = asyncio.Event()
    started = time.monotonic()
    assert not await wait_for(event, 0.02)
    assert time.monotonic() - started >= 0.015
    event.set()
    assert await wait_for(event, 0.0)


MAIN = """
import sys
from dualmap_service.lifecycle import ServiceFailedError, run_service

async def main(stop):
    print("up", flush=True)
    {}

sys.exit(run_service(main))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    code = MAIN.format("await stop.wait(); print('down', flush=True)")
    child = start_child([sys.executable, "-c", code], "service", tmp_path / "log")
    await eventually(lambda: "up" in child.log_tail())
    child.process.send_signal(number)
    assert await child.wait(20.0) == 0
    assert child.log_tail().split() == ["up", "down"]


async def test_a_failure_is_one_line(tmp_path: Path) -> None:
    code = MAIN.format("raise ServiceFailedError('the port is taken')")
    child = start_child([sys.executable, "-c", code], "service", tmp_path / "log")
    assert await child.wait(20.0) == 1
    assert sorted(child.log_tail().splitlines()) == ["fatal: the port is taken", "up"]


async def test_it_may_open_as_many_files_as_it_is_allowed_to(tmp_path: Path) -> None:
    program = """
import resource
from dualmap_service.lifecycle import run_service
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
async def main(stop):
    print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
raise SystemExit(run_service(main))
"""
    child = start_child([sys.executable, "-c", program], "service", tmp_path / "log")
    assert await child.wait(20.0) == 0
    assert child.log_tail() == "True\n"
