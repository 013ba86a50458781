"""Who is compared, how each is started, and why with these settings. A peer's own words are in its --help.

Every peer runs twice: as it comes, and with settings chosen for these engines in good faith. Defaults are meant for
fleets whose engines hold hundreds of requests; here an engine holds about ten prompts of 12,000 tokens, so that
thresholds which count requests never trigger as they come.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.engines import PROFILE

VENVS = Path(__file__).parents[2] / "build/peers"
OWN = "this tree"
"""The package of what is not a peer but a bound."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as a router has to know it."""

    url: str
    kv_events: str
    kv_replay: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a router listens and may write."""

    port: int
    metrics_port: int
    folder: Path
    time_scale: float = 1.0
    mesh_port: int = 0
    mesh_peers: tuple[int, ...] = ()
    """The mesh ports of the other routers of its fleet."""


Launch = Callable[[Place, Sequence[Engine]], list[str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A router under one set of settings."""

    name: str
    package: str
    """On PyPI, or the program of the system's."""
    launch: Launch
    why: str
    ready_path: str = "/readiness"


def _common(place: Place, engines: Sequence[Engine]) -> list[str]:
    urls = [engine.url for engine in engines]
    return [
        "--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(place.metrics_port),
        "--log-level", "warn", "--worker-urls", *urls,
    ]  # fmt: skip


def _sglang(*flags: str) -> Launch:
    python = str(VENVS / "sglang-router/bin/python")
    return lambda place, engines: [
        python, "-m", "sglang_router.launch_router", *_common(place, engines), *flags
    ]  # fmt: skip


def _smg(*flags: str, mesh: bool = False) -> Launch:
    program = str(VENVS / "smg/bin/smg")
    return lambda place, engines: [
        program, "launch", *_common(place, engines), *flags, *(_mesh(place) if mesh else ())
    ]  # fmt: skip


def _mesh(place: Place) -> list[str]:
    if not place.mesh_peers:
        return []
    peers = [f"127.0.0.1:{port}" for port in place.mesh_peers]
    return [
        "--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", str(place.mesh_port),
        "--mesh-server-name", f"mesh-{place.mesh_port}", "--mesh-peer-urls", *peers,
    ]  # fmt: skip


def _vllm(*flags: str, kv_events: bool = False) -> Launch:
    program = str(VENVS / "vllm-router/bin/vllm-router")

    def launch(place: Place, engines: Sequence[Engine]) -> list[str]:
        common = ["warning" if word == "warn" else word for word in _common(place, engines)]
        sources: list[str] = []
        for engine in engines if kv_events else ():
            sources += ["--kv-event-source", f"{engine.url}={engine.kv_events}"]
            sources += ["--kv-event-replay-source", f"{engine.url}={engine.kv_replay}"]
        return [program, *common, *flags, *sources]

    return launch


def _dynamo(place: Place, engines: Sequence[Engine]) -> list[str]:
    known = [f"{engine.url},{engine.kv_events},{engine.kv_replay}" for engine in engines]
    return [
        sys.executable, "-m", "bench.peers.dynamo_front", "--python", str(VENVS / "dynamo/bin/python"),
        "--port", str(place.port), "--selector-port", str(place.metrics_port),
        *(word for engine in known for word in ("--engine", engine)),
    ]  # fmt: skip


def _oracle(place: Place, engines: Sequence[Engine]) -> list[str]:
    return [
        sys.executable, "-m", "bench.peers.oracle_front", "--port", str(place.port),
        "--time-scale", str(place.time_scale), *(word for one in engines for word in ("--engine", one.url)),
    ]  # fmt: skip


def _nginx(place: Place, engines: Sequence[Engine]) -> list[str]:
    config = place.folder / "nginx.conf"
    servers = "".join(f"server {engine.url.removeprefix('http://')};" for engine in engines)
    folder = place.folder
    # One process for all: least_conn counts what its own process has open, and CPU is read of one process.
    config.write_text(
        f"master_process off; pid {folder}/nginx.pid; daemon off; error_log stderr warn;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f" fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        " client_max_body_size 64m; client_body_buffer_size 1m; keepalive_requests 1000000;\n"
        f" upstream engines {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000; }}\n"
        f" server {{ listen 127.0.0.1:{place.port} backlog=4096;\n"
        "  location / { proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection '';\n"
        "   proxy_buffering off; proxy_read_timeout 3600s; } } }\n"
    )
    return ["nginx", "-p", str(folder), "-c", str(config), "-e", "stderr"]


_BALANCE = ("--balance-abs-threshold", "4", "--balance-rel-threshold", "1.2")
_KV_EVENTS = ("--kv-event-model", "sim-model", "--kv-event-block-size", str(PROFILE.block_size))

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("sglang-router", "sglang-router", _sglang(), "as it comes: cache_aware, threshold 0.3, 64, 1.5"),
        Peer(
            "sglang-router tuned",
            "sglang-router",
            _sglang(*_BALANCE),
            "its load is requests in flight, about ten an engine here: it balances from a difference of 4 on",
        ),
        Peer("smg", "smg", _smg(), "as it comes: cache_aware, threshold 0.3, spill at 64 and 1.5, loads every 10 s"),
        Peer(
            "smg tuned",
            "smg",
            _smg(*_BALANCE, "--load-monitor-interval", "1", mesh=True),
            "spills from 4 requests over the mean on; reads the engines' queues every second; several make a mesh",
        ),
        Peer(
            "vllm-router",
            "vllm-router",
            _vllm(),
            "as it comes: cache_aware, threshold 0.3, 64, 1.5; asks engines to tokenize each prompt",
        ),
        Peer(
            "vllm-router tuned",
            "vllm-router",
            _vllm("--policy", "kv_aware", *_KV_EVENTS, kv_events=True),
            "kv_aware: follows the engines' own KV events; smallest cost of uncached and active tokens",
        ),
        Peer(
            "dynamo",
            "dynamo",
            _dynamo,
            "its KV router's choice as it comes, by its selection service; a proxy of this bench forwards",
        ),
        Peer("oracle", OWN, _oracle, "knows every queue and cache; smallest expected TTFT"),
        Peer("nginx", "nginx", _nginx, "least_conn, one process, no prefix at all", ready_path="/health"),
    )
}  # fmt: skip
