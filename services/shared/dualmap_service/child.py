"""Child processes that never outlive their parent, whatever way the parent ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dualmap_service import keeper

_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as exc:
    sys.exit(f"cannot start {sys.argv[2]}: {exc.strerror}")
"""
"""Asks the kernel for SIGKILL when the parent goes, then becomes the program.

Not a `preexec_fn`: that forks, and a fork of a process in which gRPC runs can break the child (its event engine
lives on in the copy). Without one the child starts by vfork, which no library notices.
"""


_KEEPER_S = 5.0
"""How long a keeper may take to kill what it keeps."""


class Child:
    """A started child process. Start children from the main thread: the kernel watches that thread."""

    def __init__(
        self, process: subprocess.Popen[bytes], name: str, log: Path | None, kept: bool = False
    ) -> None:
        self.process = process
        self.name = name
        self.log = log
        self._kept = kept

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def log_tail(self, max_bytes: int = 2000) -> str:
        """The end of what it printed; empty where output was not kept."""
        if self.log is None or not self.log.exists():
            return ""
        return self.log.read_bytes()[-max_bytes:].decode(errors="replace")

    async def wait(self, timeout_s: float) -> int | None:
        """Its exit status, or None while it still runs after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.running:
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(0.02)
        return self.process.returncode

    async def stop(self, grace_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `grace_s`; returns the exit status."""
        if self.running:
            self.process.terminate()
            await self.wait(grace_s)
        return await self.kill()

    async def kill(self) -> int:
        """SIGKILL, to the processes of a kept child too; returns the exit status."""
        if self._kept:
            if self.running:
                self.process.send_signal(keeper.KILL_ALL)
                await self.wait(_KEEPER_S)
            # A keeper that was killed itself has left its group behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.running:
            self.process.kill()
        return self.process.wait()


def start_child(
    argv: Sequence[str],
    name: str,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    inherited: Callable[[str], bool] = lambda _: True,
    output: int | None = None,
    kept: bool = False,
    scratch: Path | None = None,
) -> Child:
    """Start `argv`; its output goes to the descriptor `output`, to `log`, or nowhere.

    Its environment is those of this process's variables that are to be `inherited`, and `env`. One that is `kept`
    has a keeper before it, so that the processes that it starts end with it and with this one, which can then no
    longer remove the folder `scratch` itself.
    """
    own_id = str(os.getpid())
    program = [keeper.__file__, own_id, str(scratch or "")] if kept else ["-c", _LAUNCHER, own_id]
    launcher = [sys.executable, "-I", "-S", *program]
    sink = log.open("ab") if log is not None else None
    try:
        process = subprocess.Popen(
            [*launcher, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output if output is not None else sink or subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if inherited(name)} | dict(env or {}),
            cwd=cwd,
            # Its own group: Ctrl-C reaches the parent only, which stops its children in order.
            process_group=0,
        )
    finally:
        if sink is not None:
            sink.close()
    return Child(process, name, log, kept)
