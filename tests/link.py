"""A way to a ZeroMQ socket that a test can cut."""

import asyncio
import contextlib
import tempfile


class Link:
    """Stands before a tcp:// or ipc:// address. Once cut nothing comes through, and what was on its way is lost."""

    def __init__(self, target: str) -> None:
        self._kind, self._target = target.split("://")
        self._writers: set[asyncio.StreamWriter] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="dm-")
        self.is_cut = False

    async def open(self) -> str:
        """Listen; returns the address to use instead."""
        if self._kind == "ipc":
            path = f"{self._folder.name}/link"
            self._server = await asyncio.start_unix_server(self._serve, path)
            return f"ipc://{path}"
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.close()
            return
        with contextlib.suppress(OSError):
            up_reader, up_writer = await self._connect()
            self._writers |= {writer, up_writer}
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._kind == "ipc":
            return await asyncio.open_unix_connection(self._target)
        host, port = self._target.split(":")
        return await asyncio.open_connection(host, int(port))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)

    def cut(self) -> None:
        """Close what is open and let nothing through."""
        self.is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Let new connections through."""
        self.is_cut = False

    async def close(self) -> None:
        """Close for good."""
        self.cut()
        self._server.close()
        self._folder.cleanup()
