"""What clients were sent of streams that may have to be continued elsewhere: raw bytes, parsed only if it happens."""


class StreamRecords:
    """Bounds what all records hold together; a stream beyond a bound is relayed on, but cannot be continued."""

    def __init__(self, max_bytes_each: int, max_bytes: int) -> None:
        self.max_bytes_each = max_bytes_each
        self.max_bytes = max_bytes
        self.held_bytes = 0

    def open(self) -> "StreamRecord":
        """The record of a stream that is about to begin; to be closed when the request ends."""
        return StreamRecord(self)


class StreamRecord:
    """One stream's bytes in order."""

    __slots__ = ("_chunks", "_records", "_size", "_whole")

    def __init__(self, records: StreamRecords) -> None:
        self._records = records
        self._chunks: list[bytes] = []
        self._size = 0
        self._whole = True

    def add(self, chunk: bytes) -> None:
        """The client is sent this."""
        if not self._whole:
            return
        records = self._records
        self._size += len(chunk)
        records.held_bytes += len(chunk)
        self._chunks.append(chunk)
        if self._size > records.max_bytes_each or records.held_bytes > records.max_bytes:
            self._whole = False
            self.close()

    def read(self) -> bytes | None:
        """All that the client was sent; None when it was too much to keep."""
        return b"".join(self._chunks) if self._whole else None

    def close(self) -> None:
        """Nobody will ask any more."""
        self._records.held_bytes -= self._size
        self._size = 0
        self._chunks.clear()
