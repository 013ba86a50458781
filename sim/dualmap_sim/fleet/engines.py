"""Which simulated engine a fleet's instances have."""

from collections.abc import Callable
from dataclasses import replace

from dualmap_sim.engine.profile import named_profile
from dualmap_sim.fleet.chunked import ChunkedEngine
from dualmap_sim.fleet.engine import Engine, EngineListener
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.prefix_cache import PrefixCache
from dualmap_sim.fleet.serial import SerialEngine
from dualmap_sim.fleet.setup import FleetSetup


def make_engine(
    setup: FleetSetup,
    index: int,
    loop: Loop,
    listener: EngineListener,
    stored: Callable[[int], None],
    evicted: Callable[[int], None],
) -> Engine:
    """The engine of instance `index`; an EngineConfigError for a model that is not known.

    `stored` and `evicted` are told of each chunk that comes and goes.
    """
    engine: SerialEngine | ChunkedEngine
    if setup.model == "serial":
        engine = SerialEngine(loop, PrefixCache(setup.kv_blocks, stored, evicted), listener)
    else:
        profile = named_profile(setup.model) if isinstance(setup.model, str) else setup.model
        engine = ChunkedEngine(
            loop, listener, replace(profile, num_kv_blocks=setup.kv_blocks), stored, evicted
        )
    if setup.speed_factors:
        engine.speed_factor = setup.speed_factors[index]
    return engine
