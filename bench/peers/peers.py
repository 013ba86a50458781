"""Who is compared, how each is started, and why with these settings. A peer's own words are in its --help.

Every peer runs twice: as it comes, and with settings chosen for these engines in good faith. Defaults are meant for
fleets whose engines hold hundreds of requests; here an engine holds about ten prompts of 12,000 tokens, so that
thresholds which count requests never trigger as they come.
"""

from dataclasses import dataclass

from bench.peers import launch
from bench.peers.engines import PROFILE
from bench.peers.launch import Launch

OWN = "this tree"
"""The package of what is not a peer but a bound."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A router under one set of settings."""

    name: str
    package: str
    """On PyPI, or the program of the system's."""
    launch: Launch
    why: str
    ready_path: str = "/readiness"


LOADS_EACH_SECOND = ("--load-monitor-interval", "1")
KV_EVENTS = ("--kv-event-model", "sim-model", "--kv-event-block-size", str(PROFILE.block_size))

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("sglang-router", "sglang-router", launch.sglang(), "as it comes: cache_aware, threshold 0.3, 64, 1.5"),
        Peer(
            "sglang-router tuned",
            "sglang-router",
            launch.sglang(*launch.balance(4)),
            "its load is requests in flight, about ten an engine here: it balances from a difference of 4 on",
        ),
        Peer(
            "smg",
            "smg",
            launch.smg(),
            "as it comes: cache_aware, threshold 0.3, spill at 64 and 1.5, loads every 10 s",
        ),
        Peer(
            "smg tuned",
            "smg",
            launch.smg(*launch.balance(4), *LOADS_EACH_SECOND, mesh=True),
            "spills from 4 requests over the mean on; reads the engines' queues every second; several make a mesh",
        ),
        Peer(
            "vllm-router",
            "vllm-router",
            launch.vllm(),
            "as it comes: cache_aware, threshold 0.3, 64, 1.5; asks engines to tokenize each prompt",
        ),
        Peer(
            "vllm-router tuned",
            "vllm-router",
            launch.vllm("--policy", "kv_aware", *KV_EVENTS, kv_events=True),
            "kv_aware: follows the engines' own KV events; smallest cost of uncached and active tokens",
        ),
        Peer(
            "dynamo",
            "dynamo",
            launch.dynamo,
            "its KV router's choice as it comes, by its selection service; a proxy of this bench forwards",
        ),
        Peer("oracle", OWN, launch.oracle, "knows every queue and cache; smallest expected TTFT"),
        Peer("nginx", "nginx", launch.nginx, "least_conn, one process, no prefix at all", ready_path="/health"),
    )
}  # fmt: skip
