"""One world for all tests of a session; a test that fails leaves it to nobody else."""

import shutil
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from .trial import Outcome, summary
from .world import World

FAILED = pytest.StashKey[bool]()
SCHEDULES = pytest.StashKey[list[Outcome]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--schedules", type=int, default=2, help="Random schedules of faults.")
    group.addoption("--seconds", type=float, default=15.0, help="How long each of them lasts.")
    group.addoption("--seed", type=int, default=1, help="The first one's seed; the others follow.")
    group.addoption("--logs", type=Path, help="A folder that gets every part's log.")
    group.addoption("--long", action="store_true", help="Measured scenarios at full length (60 s faults).")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "schedule_seed" in metafunc.fixturenames:
        first, count = metafunc.config.getoption("--seed"), metafunc.config.getoption("--schedules")
        metafunc.parametrize("schedule_seed", range(first, first + count))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    outcomes = config.stash.get(SCHEDULES, [])
    if outcomes:
        terminalreporter.section("schedules")
        terminalreporter.write_line(summary(outcomes))


class _Keeper:
    """Starts the world anew when a test has broken it."""

    def __init__(self, logs: Path | None) -> None:
        self._world: World | None = None
        self._logs = logs

    async def world(self) -> World:
        if self._world is not None and self._world.broken:
            await self.stop()
        if self._world is None:
            self._world = await World().__aenter__()
        return self._world

    async def stop(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            if self._logs is not None:
                shutil.copytree(world.logs, self._logs, dirs_exist_ok=True)
            await world.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def keeper(request: pytest.FixtureRequest) -> AsyncIterator[_Keeper]:
    keeper = _Keeper(request.config.getoption("--logs"))
    try:
        yield keeper
    finally:
        await keeper.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest_asyncio.fixture(loop_scope="session")
async def world(keeper: _Keeper, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A whole system, at rest unless an earlier test has failed on it: then it is another."""
    world = await keeper.world()
    world.broken = True
    await world.whole()
    yield world
    world.broken = FAILED in request.node.stash


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints to the person who runs the tests, also when they pass."""

    def say(*lines: str) -> None:
        with capsys.disabled():
            print("\n  ".join(("", *lines)), flush=True)

    return say
