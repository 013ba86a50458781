"""What a worker can expect of an engine: by its version, by how it was started, by what it has answered."""

import re
from dataclasses import dataclass

from dualmap_worker.engine_launch import EngineLaunch

OLDEST_VLLM = (0, 20)
"""Older ones are not refused, and not looked after."""
TESTED_VLLM = (0, 32)
"""What the tests run."""
SESSION_IDS_VLLM = (0, 30)
"""The first whose KV events name the session of a request: 0.26 does not, 0.32 does."""

_UNTOLD = 20
"""Answers without a word of cached tokens where some were expected, until the engine is taken to be silent."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that an engine does not give, what follows, and what to do."""

    name: str
    follows: str
    do: str


OLD_VERSION = Lack(
    "supported-version",
    "its API and its metrics may not be what this release expects",
    f"Use vLLM {OLDEST_VLLM[0]}.{OLDEST_VLLM[1]} or newer.",
)
PROMPT_DETAILS = Lack(
    "prompt-token-details",
    "how much of a prompt was cached is taken to be as expected, so that prefill speed and cached tokens are estimates",
    "Start vLLM with --enable-prompt-tokens-details, and without --no-enable-prefix-caching.",
)
KV_EVENTS = Lack(
    "kv-events",
    "which prefixes an instance holds is taken from where requests went; what it evicts is not seen",
    "Start vLLM with --kv-events-config and an endpoint that it binds (tcp://*:5557), its worker with --kv-events-url.",
)
SESSION_IDS = Lack(
    "session-ids",
    "its KV events do not name the request that they belong to",
    f"Use vLLM {SESSION_IDS_VLLM[0]}.{SESSION_IDS_VLLM[1]} or newer.",
)
ONE_CACHE = Lack(
    "one-cache",
    "its data-parallel ranks have a cache each: which prefixes it holds is taken from where requests went",
    "For affinity run one vLLM per rank, without -dp, and a worker beside each.",
)
EVENTS_HEARD = Lack(
    "heard-kv-events",
    "no KV events come of what its last requests computed: which prefixes it holds is taken from where requests went, "
    "or from what was heard before",
    "Compare the worker's --kv-events-url with the endpoint in vLLM's --kv-events-config, its port with firewalls and "
    "container ports, and see that enable_kv_cache_events is true there and prefix caching is on.",
)
LACKS = {
    lack.name: lack for lack in (OLD_VERSION, PROMPT_DETAILS, KV_EVENTS, SESSION_IDS, ONE_CACHE, EVENTS_HEARD)
}
NO_OWNERSHIP = frozenset(lack.name for lack in (KV_EVENTS, SESSION_IDS, ONE_CACHE, EVENTS_HEARD))
"""The lacks with any of which ownership does not follow the engine's cache."""


def known_lacks(launch: EngineLaunch, version: str) -> list[Lack]:
    """What is known to be missing before the first request; a version that cannot be read says nothing."""
    found = []
    numbers = _numbers(version)
    if numbers is not None and numbers < OLDEST_VLLM:
        found.append(OLD_VERSION)
    if launch.prompt_details is False:
        found.append(PROMPT_DETAILS)
    if not launch.kv.events:
        found.append(KV_EVENTS)
    elif numbers is not None and numbers < SESSION_IDS_VLLM:
        found.append(SESSION_IDS)
    if len(launch.kv.events) > 1:
        found.append(ONE_CACHE)
    return found


def _numbers(version: str) -> tuple[int, int] | None:
    """(major, minor) of a release; None for what is none, or for vLLM's own 0.1.dev builds."""
    match = re.match(r"v?(\d+)\.(\d+)(?!\.dev)(?:[.+]|rc|$)", version)
    return None if match is None else (int(match[1]), int(match[2]))


class ToldDetails:
    """Learns from the answers that go by whether an engine tells cached tokens: vLLM leaves a zero out."""

    def __init__(self) -> None:
        self._untold = 0
        self.told: bool | None = None
        """None until it is clear."""

    def answered(self, expected_cached: int, cached: int | None) -> bool:
        """A prompt was generated for; whether that changed what is known."""
        before = self.told
        if cached is not None:
            self.told, self._untold = True, 0
        elif expected_cached > 0 and self.told is None:
            self._untold += 1
            if self._untold >= _UNTOLD:
                self.told = False
        return self.told != before
