"""The system in containers, as compose.yaml has it: built, started once, and gone without a trace at the end."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualmap_service.ports import free_ports

from ..waiting import eventually

ROOT = Path(__file__).parents[2]
PROJECT = f"dualmap-test-{os.getpid()}"


class Compose:
    """`docker compose` for one project."""

    def __init__(self, port: int, traces_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans_url = f"http://127.0.0.1:{traces_port}/spans"
        self._environ = {
            **os.environ,
            "DUALMAP_PORT": str(port),
            "DUALMAP_JAEGER_PORT": str(traces_port),
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_FILE": "compose.yaml:tests/compose/receiver.yaml",
        }

    def run(self, *args: str, check: bool = True) -> str:
        """Run a compose command; returns what it printed."""
        return self._run(["docker", "compose", *args], check)

    def docker(self, *args: str) -> str:
        """Run a docker command."""
        return self._run(["docker", *args], True)

    def _run(self, command: list[str], check: bool) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self._environ, text=True, capture_output=True, timeout=540, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Names of a service's running containers."""
        return self.run("ps", "--format", "{{.Name}}", service).split()

    def inspect(self, template: str, *containers: str) -> list[str]:
        """A line for each."""
        return self.docker("inspect", "--format", template, *containers).splitlines()

    def signal(self, container: str, name: str = "KILL") -> None:
        """To its first process; SIGKILL as the kernel does when memory runs out."""
        self.docker("kill", "--signal", name, container)

    def health(self, *containers: str) -> set[str]:
        """What their health checks say."""
        return set(self.inspect("{{.State.Health.Status}}", *containers))

    async def start(self, *containers: str) -> None:
        """Start containers that ended, and wait until they are healthy."""
        await asyncio.to_thread(self.docker, "start", *containers)

        async def healthy() -> bool:
            # Asking takes a good part of a core, which the system wants as well.
            await asyncio.sleep(0.3)
            return await asyncio.to_thread(self.health, *containers) == {"healthy"}

        await eventually(healthy, 60.0)

    def up(self, *args: str) -> None:
        """Start what does not run, and wait until all are healthy."""
        self.run("up", "--detach", "--wait", "--wait-timeout", "120", *args)


def left_behind() -> list[str]:
    """Containers, networks and volumes that carry the project's label."""
    found = []
    for kind in (("ps", "--all"), ("network", "ls"), ("volume", "ls")):
        command = ["docker", *kind, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"]
        found += subprocess.run(command, text=True, capture_output=True, check=True).stdout.split()
    return found


@pytest.fixture(scope="session")
def system() -> Iterator[Compose]:
    """The system, up and healthy."""
    assert shutil.which("docker"), "these tests need a Docker engine with the Compose plugin"
    compose = Compose(free_ports(), free_ports())
    try:
        compose.run("build")
        compose.up()
        yield compose
    except BaseException:
        print(compose.run("ps", "--all", check=False))
        print(compose.run("logs", "--tail", "40", check=False))
        raise
    finally:
        compose.run("--profile", "*", "down", "--volumes", "--timeout", "5", check=False)
    assert left_behind() == []


@pytest.fixture(scope="session")
def scaled(system: Compose) -> Compose:
    """The same with four routers."""
    system.up("--scale", "router=4")
    return system
