from dataclasses import replace

import pytest

from dualmap_sim.engine import EngineConfigError, EngineProfile
from dualmap_sim.fleet.chunked import ChunkedEngine
from dualmap_sim.fleet.engine import Engine
from dualmap_sim.fleet.engines import make_engine
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.serial import SerialEngine
from dualmap_sim.fleet.setup import FleetSetup

from .conditions import Log, arrival, submit


def make(setup: FleetSetup, index: int = 0) -> tuple[Loop, Log, Engine]:
    loop = Loop()
    log = Log(loop)
    return loop, log, make_engine(setup, index, loop, log, lambda chunk: None, lambda chunk: None)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("serial", SerialEngine), ("default", ChunkedEngine), (EngineProfile(name="mine"), ChunkedEngine)],
)
def test_the_setup_says_which_engine(model: str | EngineProfile, kind: type) -> None:
    setup = FleetSetup(model=model, kv_blocks=4)
    loop, log, engine = make(setup)
    assert isinstance(engine, kind)
    submit(loop, engine, arrival("a", 1_024))
    loop.at(0.01, lambda: shares.append(engine.kv_use))
    shares: list[float] = []
    loop.run()
    assert shares == [0.5], "kv_blocks are the engine's blocks"
    assert log.first_s["a"] == pytest.approx(EngineProfile().prefill_s(1_024))


@pytest.mark.parametrize("model", ["serial", "default"])
def test_an_instance_may_be_slower_than_its_profile(model: str) -> None:
    setup = FleetSetup(model=model, num_instances=2, speed_factors=(1.0, 2.0))
    first_s = []
    for index in range(2):
        loop, log, engine = make(setup, index)
        submit(loop, engine, arrival("a", 1_000))
        loop.run()
        first_s.append(log.first_s["a"])
    assert first_s[1] == pytest.approx(2 * first_s[0])


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(EngineConfigError, match="default"):
        make(replace(FleetSetup(), model="parallel"))
