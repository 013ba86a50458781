"""How long a newcomer waits for the first streamed token: `python -m bench.newcomer [--compose]`.

Clones the repository into a temporary folder, gives the README's command, and asks for a stream as soon as it says
where. Nothing of an earlier installation is used: pip's cache is off, and `--compose` builds images without theirs.
Images that are not built here are those that the engine has, or it pulls them.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from dualmap_service.child import Child, start_child
from dualmap_service.ports import free_ports

_LIMIT_S = 900.0
_ROUTER = re.compile(r"^routers\s+(http://\S+?)[,\s]", re.MULTILINE)
_STORE = re.compile(r"^store\s", re.MULTILINE)
_QUESTION = {
    "model": "sim-model",
    "stream": True,
    "messages": [{"role": "user", "content": "hello"}],
}


class NewcomerError(Exception):
    """The README's command did not do what it says."""


class Stages:
    """What was reached when, in seconds from the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._last_s = 0.0

    def reached(self, what: str) -> None:
        """Say so."""
        at_s = time.monotonic() - self._began_s
        print(f"{what:34}{at_s - self._last_s:8.1f} s   (at {at_s:6.1f} s)", flush=True)
        self._last_s = at_s


async def with_make(source: str, folder: Path, stages: Stages) -> None:
    """`make demo` in a new clone."""
    await _clone(source, folder, stages)
    log = folder.parent / "demo.log"
    demo = start_child(
        ["make", "demo"],
        "demo",
        log,
        env={"PIP_NO_CACHE_DIR": "1", "PYTHONUNBUFFERED": "1"},
        inherited=lambda name: name not in ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"),
        cwd=folder,
        kept=True,
    )
    try:
        await _printed(demo, _STORE)
        stages.reached("make: what it needs is installed")
        routers = await _printed(demo, _ROUTER)
        stages.reached("the system is up")
        await _first_token(routers[1])
        stages.reached("first streamed token")
        if await demo.wait(_LIMIT_S) != 0:
            raise NewcomerError(f"make demo failed:\n{demo.log_tail()}")
        stages.reached("demo's summary")
    finally:
        await demo.kill()


async def _printed(demo: Child, what: re.Pattern[str]) -> re.Match[str]:
    assert demo.log is not None
    async with asyncio.timeout(_LIMIT_S):
        while not (match := what.search(demo.log.read_text())):
            if not demo.running:
                raise NewcomerError(f"make demo ended:\n{demo.log_tail()}")
            await asyncio.sleep(0.05)
    return match


async def with_compose(source: str, folder: Path, stages: Stages) -> None:
    """`docker compose up` in a new clone, on a free port; COMPOSE_FILE may add to compose.yaml."""
    await _clone(source, folder, stages)
    port = free_ports()
    ports = {"DUALMAP_PORT": str(port), "DUALMAP_JAEGER_PORT": str(free_ports())}
    compose = ("docker", "compose", "--project-name", f"dualmap-newcomer-{os.getpid()}")
    try:
        await _run([*compose, "build", "--no-cache", "--quiet"], folder, ports)
        stages.reached("images are built")
        await _run([*compose, "up", "--detach", "--wait"], folder, ports)
        stages.reached("the system is up")
        await _first_token(f"http://127.0.0.1:{port}")
        stages.reached("first streamed token")
    finally:
        await _run([*compose, "down", "--volumes"], folder, ports)


async def _clone(source: str, folder: Path, stages: Stages) -> None:
    await _run(["git", "clone", "--quiet", source, str(folder)], folder.parent, {})
    stages.reached("git clone")


async def _run(command: Sequence[str], folder: Path, env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**os.environ, **env}, stdout=asyncio.subprocess.DEVNULL
    )
    if await process.wait() != 0:
        raise NewcomerError(f"{' '.join(command)} failed")


async def _first_token(url: str) -> None:
    """Returns when the first text of a stream is here."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=_QUESTION) as answer,
    ):
        if answer.status != 200:
            raise NewcomerError(f"{url} answered {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if b'"content"' in line:
                return
    raise NewcomerError(f"{url} streamed no text")


async def _measure(source: str, compose: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="dualmap-newcomer-") as folder:
        await (with_compose if compose else with_make)(source, Path(folder) / "dualmap", Stages())


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.newcomer", description=__doc__)
    parser.add_argument(
        "--source", default=".", help="Clone this repository (default: the one in this folder)."
    )
    parser.add_argument("--compose", action="store_true", help="In containers; needs a Docker engine.")
    given = parser.parse_args()
    source = given.source if "://" in given.source else str(Path(given.source).resolve())
    try:
        asyncio.run(_measure(source, given.compose))
    except NewcomerError as error:
        sys.exit(f"bench.newcomer: {error}")


if __name__ == "__main__":
    main()
