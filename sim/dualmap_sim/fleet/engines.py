"""Which simulated engine a fleet's instances have."""

from collections.abc import Callable
from dataclasses import replace

from dualmap_sim.engine.profile import EngineProfile, named_profile
from dualmap_sim.fleet.chunked import ChunkedEngine
from dualmap_sim.fleet.engine import Engine, EngineListener
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.prefix_cache import PrefixCache
from dualmap_sim.fleet.serial import SerialEngine, SerialProfile
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
    profile = model_profile(setup)
    engine: SerialEngine | ChunkedEngine
    if isinstance(profile, SerialProfile):
        engine = SerialEngine(loop, PrefixCache(setup.kv_blocks, stored, evicted), listener, profile)
    else:
        engine = ChunkedEngine(
            loop, listener, replace(profile, num_kv_blocks=setup.kv_blocks), stored, evicted
        )
    if setup.speed_factors:
        engine.speed_factor = setup.speed_factors[index]
    return engine


def model_profile(setup: FleetSetup) -> SerialProfile | EngineProfile:
    """The speeds of a fleet's engines; an EngineConfigError for a model that is not known."""
    if setup.model == "serial":
        return SerialProfile()
    return named_profile(setup.model) if isinstance(setup.model, str) else setup.model


def cold_prefill_s(setup: FleetSetup, prompt_tokens: int) -> float:
    """Seconds that a prompt takes alone on an instance that holds nothing of it."""
    profile = model_profile(setup)
    if isinstance(profile, SerialProfile):
        return profile.speed.prefill_s(prompt_tokens, 0)
    return profile.prefill_s(prompt_tokens)
