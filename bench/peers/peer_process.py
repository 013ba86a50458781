"""A peer as a child process: is it installed, which version, and is it ready."""

import asyncio
import importlib.metadata
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.peers.peers import VENVS, Engine, Peer, Place
from dualmap_service.child import Child, start_child

_START_S = 60.0


class ArenaError(RuntimeError):
    """A router did not start, or something is left over when all is over."""


def missing(peer: Peer) -> str | None:
    """Why a peer cannot run here; None if it can."""
    if peer.package == "nginx":
        return None if shutil.which("nginx") else "nginx is not installed"
    folder = VENVS / peer.package
    return None if (folder / "bin/python").exists() else f"{folder} is missing: `make peers`"


def version(peer: Peer) -> str:
    """What is installed."""
    if peer.package == "nginx":
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
        return said.strip().rpartition("/")[2].split()[0]
    paths = [str(path) for path in (VENVS / peer.package).glob("lib/python3*/site-packages")]
    found = importlib.metadata.distributions(name=peer.package, path=paths)
    return next((one.version for one in found), "?")


async def start_peer(peer: Peer, engines: Sequence[Engine], folder: Path) -> tuple[str, Child]:
    """Start a router and wait until it has every engine."""
    place, child = _begin(peer, engines, folder)
    url = f"http://127.0.0.1:{place.port}"
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_S
    async with aiohttp.ClientSession() as http:
        while True:
            state = await _try(http, url + peer.ready_path)
            if state is not None and state.get("healthy_workers", len(engines)) >= len(engines):
                return url, child
            if not child.running or loop.time() > deadline:
                tail = child.log_tail()
                await child.stop()
                raise ArenaError(f"{peer.name} did not start: {state}\n{tail}")
            await asyncio.sleep(0.1)


def _begin(peer: Peer, engines: Sequence[Engine], folder: Path) -> tuple[Place, Child]:
    folder.mkdir()
    place = Place(_free_port(), _free_port(), folder)
    return place, start_child(peer.launch(place, engines), peer.name, folder / "log", env=peer.env)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _try(http: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=2.0)) as response:
            if response.status != 200:
                return None
            raw = await response.read()
            return dict(msgspec.json.decode(raw)) if raw.startswith(b"{") else {}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
