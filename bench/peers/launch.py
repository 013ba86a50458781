"""How each router is started in front of engines: its words on a command line, and nginx's file."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

VENVS = Path(__file__).parents[2] / "build/peers"


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


def _common(place: Place, engines: Sequence[Engine]) -> list[str]:
    urls = [engine.url for engine in engines]
    return [
        "--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(place.metrics_port),
        "--log-level", "warn", "--worker-urls", *urls,
    ]  # fmt: skip


def balance(threshold: int) -> tuple[str, ...]:
    """Flags of sglang-router and who came of it: leave a prefix's engine that has so many requests more than others."""
    return ("--balance-abs-threshold", str(threshold), "--balance-rel-threshold", "1.2")


def sglang(*flags: str) -> Launch:
    """SGLang's router with some flags."""
    python = str(VENVS / "sglang-router/bin/python")
    return lambda place, engines: [
        python, "-m", "sglang_router.launch_router", *_common(place, engines), *flags
    ]  # fmt: skip


def smg(*flags: str, mesh: bool = False) -> Launch:
    """Its successor; several of a fleet make a mesh."""
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


def vllm(*flags: str, kv_events: bool = False) -> Launch:
    """vLLM's router; it may follow the engines' KV events."""
    program = str(VENVS / "vllm-router/bin/vllm-router")

    def launch(place: Place, engines: Sequence[Engine]) -> list[str]:
        common = ["warning" if word == "warn" else word for word in _common(place, engines)]
        sources: list[str] = []
        for engine in engines if kv_events else ():
            sources += ["--kv-event-source", f"{engine.url}={engine.kv_events}"]
            sources += ["--kv-event-replay-source", f"{engine.url}={engine.kv_replay}"]
        return [program, *common, *flags, *sources]

    return launch


def dynamo(place: Place, engines: Sequence[Engine]) -> list[str]:
    """Dynamo's selection service behind a proxy of this bench."""
    known = [f"{engine.url},{engine.kv_events},{engine.kv_replay}" for engine in engines]
    return [
        sys.executable, "-m", "bench.peers.dynamo_front", "--python", str(VENVS / "dynamo/bin/python"),
        "--port", str(place.port), "--selector-port", str(place.metrics_port),
        *(word for engine in known for word in ("--engine", engine)),
    ]  # fmt: skip


def oracle(place: Place, engines: Sequence[Engine]) -> list[str]:
    """The client that knows all, as a proxy."""
    return [
        sys.executable, "-m", "bench.peers.oracle_front", "--port", str(place.port),
        "--time-scale", str(place.time_scale), *(word for one in engines for word in ("--engine", one.url)),
    ]  # fmt: skip


def nginx(place: Place, engines: Sequence[Engine]) -> list[str]:
    """One process of nginx; its file is written where it may write."""
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
