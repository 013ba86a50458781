"""Settings that are tried beside the `tuned` ones, each once at one rate of each workload: would others do better?

Their thresholds count requests in flight and shares of a prompt. An engine here holds about ten prompts, so that a
difference of 2 to 16 requests spans what can matter; other rules that suit one prompt in one stream are tried as well.
"""

from bench.peers import launch
from bench.peers.launch import balance
from bench.peers.peers import KV_EVENTS, LOADS_EACH_SECOND, PEERS, Peer

RATES = {"conversation": 4.4, "agents": 16.0}
"""Where good settings and bad ones are far apart."""


def _threshold(share: float) -> tuple[str, ...]:
    return ("--cache-threshold", str(share))


_RULES: dict[str, dict[str, launch.Launch]] = {
    "sglang-router": {
        **{f"balances from {number}": launch.sglang(*balance(number)) for number in (2, 8, 16)},
        "balances from 4, matches from 0.1": launch.sglang(*balance(4), *_threshold(0.1)),
        "balances from 4, matches from 0.6": launch.sglang(*balance(4), *_threshold(0.6)),
        "power_of_two": launch.sglang("--policy", "power_of_two"),
    },
    "smg": {
        **{
            f"spills from {number}": launch.smg(*balance(number), *LOADS_EACH_SECOND) for number in (2, 8, 16)
        },
        "spills from 4, matches from 0.1": launch.smg(*balance(4), *LOADS_EACH_SECOND, *_threshold(0.1)),
        "spills from 4, matches from 0.6": launch.smg(*balance(4), *LOADS_EACH_SECOND, *_threshold(0.6)),
        "least_load": launch.smg("--policy", "least_load", *LOADS_EACH_SECOND),
        "power_of_two": launch.smg("--policy", "power_of_two", *LOADS_EACH_SECOND),
        "prefix_hash": launch.smg("--policy", "prefix_hash", "--prefix-hash-balance-abs-threshold", "2"),
    },
    "vllm-router": {
        **{f"cache_aware, balances from {number}": launch.vllm(*balance(number)) for number in (2, 4, 8, 16)},
        "consistent_hash": launch.vllm("--policy", "consistent_hash"),
        "power_of_two": launch.vllm("--policy", "power_of_two"),
        "kv_aware, sessions stay for 60 s": launch.vllm(
            "--policy", "kv_aware", *KV_EVENTS, "--kv-aware-session-affinity-ttl-secs", "60", kv_events=True
        ),
    },
}

SETTINGS: dict[str, Peer] = {
    f"{package}: {rule}": Peer(f"{package}: {rule}", package, start, "tried")
    for package, rules in _RULES.items()
    for rule, start in rules.items()
}

COMPARED = tuple(
    name
    for package, rules in _RULES.items()
    for name in (package, f"{package} tuned", *(f"{package}: {rule}" for rule in rules))
)
"""A router as it comes, as it was chosen, and what else was tried; router by router."""


def peer_of(subject: str) -> Peer:
    """A subject that is not DualMap; KeyError if there is none of that name."""
    return PEERS[subject] if subject in PEERS else SETTINGS[subject]
