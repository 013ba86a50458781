"""A peer as a child process: is it installed, which version, and is it ready."""

import asyncio
import importlib.metadata
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.peers.launch import VENVS, Engine, Place
from bench.peers.peers import OWN, Peer
from dualmap_service.child import Child, start_child
from dualmap_service.ports import free_ports

_START_S = 180.0
_GRACE_S = 20.0
_ANY = 1 << 30
"""Who does not count its engines has all that it was given."""


class ArenaError(RuntimeError):
    """A router did not start, or something is left over when all is over."""


def missing(peer: Peer) -> str | None:
    """Why a peer cannot run here; None if it can."""
    if peer.package == OWN:
        return None
    if peer.package == "nginx":
        return None if shutil.which("nginx") else "nginx is not installed"
    folder = VENVS / peer.package
    return None if (folder / "bin/python").exists() else f"{folder} is missing: `make peers`"


def version(peer: Peer) -> str:
    """What is installed."""
    if peer.package == OWN:
        return ""
    if peer.package == "nginx":
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False).stderr
        return said.strip().rpartition("/")[2].split()[0]
    paths = [str(path) for path in (VENVS / peer.package).glob("lib/python3*/site-packages")]
    name = "ai-dynamo" if peer.package == "dynamo" else peer.package
    found = importlib.metadata.distributions(name=name, path=paths)
    return next((one.version for one in found), "?")


class PeerRouter:
    """One router of a peer's; it can be stopped and started again on its port."""

    def __init__(self, peer: Peer, engines: Sequence[Engine], place: Place) -> None:
        self._peer = peer
        self._engines = engines
        self._place = place
        self._child: Child | None = None
        self.url = f"http://127.0.0.1:{place.port}"
        place.folder.mkdir(parents=True)

    @property
    def pid(self) -> int:
        """Of the process that does the routing."""
        assert self._child is not None
        return self._child.pid

    async def start(self) -> None:
        """Start it and wait until it has every engine."""
        peer, place = self._peer, self._place
        argv = peer.launch(place, self._engines)
        child = self._child = start_child(argv, peer.name, place.folder / "log")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_S
        async with aiohttp.ClientSession() as http:
            while True:
                state = await _try(http, self.url + peer.ready_path)
                if state is not None and state.get("healthy_workers", _ANY) >= len(self._engines):
                    return
                if not child.running or loop.time() > deadline:
                    raise ArenaError(f"{peer.name} did not start: {state}\n{child.log_tail()}")
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ask it to end, as a rolling update would, and wait for that."""
        if self._child is not None:
            await self._child.stop(grace_s=_GRACE_S)


def places(folder: Path, count: int, time_scale: float) -> list[Place]:
    """Where the routers of a fleet are; each knows of the others."""
    mesh = [free_ports() for _ in range(count)]
    return [
        Place(
            port=free_ports(),
            metrics_port=free_ports(),
            folder=folder / f"router-{number}",
            time_scale=time_scale,
            mesh_port=port,
            mesh_peers=tuple(other for other in mesh if other != port),
        )
        for number, port in enumerate(mesh, 1)
    ]


async def _try(http: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=2.0)) as response:
            if response.status != 200:
                return None
            raw = await response.read()
            return dict(msgspec.json.decode(raw)) if raw.startswith(b"{") else {}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
