"""Random schedules of mixed faults, reproducible by their seed."""

from collections.abc import Callable

import pytest

from .conftest import SCHEDULES
from .trial import make_lanes, run_trial
from .world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_a_schedule(
    world: World, schedule_seed: int, say: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    seconds = request.config.getoption("--seconds")
    lanes = make_lanes(schedule_seed, seconds, world.counts)
    outcome = await run_trial(world, lanes, seconds, schedule_seed)
    say(f"schedule --seed {schedule_seed} --seconds {seconds:g}", *outcome.lines())
    request.config.stash.setdefault(SCHEDULES, []).append(outcome)
    outcome.check()
