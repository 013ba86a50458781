"""The simulated engine: vLLM's HTTP API, metrics and KV events over a pure model of its scheduler."""

from dualmap_sim.engine.canonical import answers, canonical_prompt
from dualmap_sim.engine.errors import EngineConfigError
from dualmap_sim.engine.host import EngineAddress, EngineHost, start_engines
from dualmap_sim.engine.kv_events import KvDialect
from dualmap_sim.engine.model import EngineModel
from dualmap_sim.engine.profile import PROFILES, EngineProfile, named_profile
from dualmap_sim.engine.realtime import EngineSpec
from dualmap_sim.engine.sequence import SimRequest, StepOutcome, TokenEvent
from dualmap_sim.engine.text import expected_text, matches

__all__ = [
    "PROFILES",
    "EngineAddress",
    "EngineConfigError",
    "EngineHost",
    "EngineModel",
    "EngineProfile",
    "EngineSpec",
    "KvDialect",
    "SimRequest",
    "StepOutcome",
    "TokenEvent",
    "answers",
    "canonical_prompt",
    "expected_text",
    "matches",
    "named_profile",
    "start_engines",
]
