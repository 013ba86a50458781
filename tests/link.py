"""A way to a socket that a test can cut, silence, slow down or spoil."""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Collection

EVERYBODY = frozenset(("*",))


class Link:
    """Stands before a tcp:// or ipc:// address.

    Once cut, connections are reset and none is let in; what was on its way is lost. Once silent, they stay open and
    nothing comes through, as when packets are dropped; what waits arrives when the link is mended. `owner` names the
    process at the other end of a TCP connection by its port, so that either can be done to some peers only.
    """

    def __init__(self, target: str, owner: Callable[[int, int], str] = lambda *_: "*") -> None:
        self._kind, self._target = target.split("://")
        self._owner = owner
        self._writers: dict[asyncio.StreamWriter, str] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="dm-")
        self._is_cut_for: frozenset[str] = frozenset()
        self._is_silent_for: frozenset[str] = frozenset()
        self._mended = asyncio.Event()
        self.delay_s = 0.0
        """How long what arrives is held back, each way."""
        self.garbles = False
        """What the target says arrives as bytes that mean nothing, and the connection ends."""

    async def open(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns the address to use instead."""
        if self._kind == "ipc":
            path = f"{self._folder.name}/link"
            self._server = await asyncio.start_unix_server(self._serve, path)
            return f"ipc://{path}"
        self._server = await asyncio.start_server(self._serve, host, port, backlog=1024)
        return f"tcp://{host}:{self._server.sockets[0].getsockname()[1]}"

    def cut(self, peers: Collection[str] = EVERYBODY) -> None:
        """Reset what these peers have open and let nothing of theirs through."""
        self._is_cut_for = frozenset(peers)
        for writer, peer in list(self._writers.items()):
            if _names(self._is_cut_for, peer):
                writer.transport.abort()

    def silence(self, peers: Collection[str] = EVERYBODY) -> None:
        """Keep connections open and let nothing of these peers' through, either way."""
        self._is_silent_for = frozenset(peers)

    def mend(self) -> None:
        """Let everything through."""
        self._is_cut_for = self._is_silent_for = frozenset()
        self.delay_s, self.garbles = 0.0, False
        self._mended.set()
        self._mended = asyncio.Event()

    async def close(self) -> None:
        """Close for good."""
        self.cut()
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._folder.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        peer = self._peer_of(writer)
        self._writers[writer] = peer
        up_writer: asyncio.StreamWriter | None = None
        try:
            if not _names(self._is_cut_for, peer):
                await self._audible(peer)
                up_reader, up_writer = await self._connect()
                self._writers[up_writer] = peer
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, up_writer, peer, spoils=False))
                    both.create_task(self._pump(up_reader, writer, peer, spoils=True))
        except OSError:
            pass
        finally:
            for end in (writer, up_writer):
                if end is not None:
                    self._writers.pop(end, None)
                    end.close()

    def _peer_of(self, writer: asyncio.StreamWriter) -> str:
        if self._kind == "ipc":
            return "*"
        name, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        # None for one that has left already.
        return self._owner(name[1], own[1]) if name else ""

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._kind == "ipc":
            return await asyncio.open_unix_connection(self._target)
        host, port = self._target.rsplit(":", 1)
        return await asyncio.open_connection(host, int(port))

    async def _audible(self, peer: str) -> None:
        while _names(self._is_silent_for, peer):
            await self._mended.wait()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str, spoils: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._audible(peer)
                if spoils and self.garbles:
                    writer.write(b"\xff\x00" * 64 + b"\r\n\r\n")
                    break
                writer.write(data)
                await writer.drain()
        # An end that only one side has reached: the other may still have something to say.
        if spoils or not writer.can_write_eof():
            writer.close()
        else:
            with contextlib.suppress(OSError):
                writer.write_eof()


def _names(peers: frozenset[str], peer: str) -> bool:
    return peer in peers or "*" in peers
