"""The table of launch lines: what is started, with what, and why so."""

from pathlib import Path

from bench.peers.launch import Engine, Place
from bench.peers.peer_process import missing, version
from bench.peers.peers import OWN, PEERS, Peer


def launch_line(peer: Peer) -> str:
    """As a person would type it: programs by name, one engine, no ports."""
    if peer.package == "nginx":
        return "nginx: upstream with least_conn and keepalive, proxy_buffering off, one process"
    if peer.package == OWN:
        return f"python -m bench.peers.{peer.name}_front"
    if peer.package == "dynamo":
        return "python -m dynamo.select_service; engines registered at /workers, one reserved per request"
    words = peer.launch(Place(0, 0, Path()), [Engine("URL", "EVENTS", "REPLAY")])
    shown = [Path(words[0]).name, *words[1:]]
    for hidden in ("--host", "--port", "--prometheus-port", "--log-level"):
        at = shown.index(hidden)
        del shown[at : at + 2]
    return " ".join(shown)


def launch_table() -> str:
    """A row per peer and setting, as markdown; what is not installed says so."""
    lines = ["| subject | version | started as | settings |", "|---|---|---|---|"]
    for peer in PEERS.values():
        installed = "not installed" if missing(peer) else f"{peer.package} {version(peer)}"
        lines.append(f"| {peer.name} | {installed} | `{launch_line(peer)}` | {peer.why} |")
    lines.append(
        "| dualmap | this tree | `dualmap router`, a `dualmap worker` per engine, `dualmap rebalancer` | defaults |"
    )
    return "\n".join(lines)
