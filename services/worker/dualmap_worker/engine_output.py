"""What a started engine prints: passed on line by line, the last of it kept."""

import os
import sys
import threading
from collections import deque

from dualmap_service.lifecycle import ServiceFailedError

_KEPT_LINES = 40
_MAX_LINE_BYTES = 1 << 16


class EngineOutput:
    """Copies what the engine prints to a file or to this process's standard error."""

    def __init__(self, path: str) -> None:
        try:
            self._sink = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640) if path else None
        except OSError as exc:
            raise ServiceFailedError(f"cannot write --engine-log {path}: {exc.strerror}") from exc
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._copier: threading.Thread | None = None

    def pipe(self) -> int:
        """A descriptor for a new engine to print to; the caller closes its copy."""
        reader, writer = os.pipe()
        self._lines.clear()
        # A thread: whoever does not read this process's output must not hold up its requests.
        self._copier = threading.Thread(target=self._copy, args=(reader,), daemon=True, name="engine-output")
        self._copier.start()
        return writer

    def _copy(self, reader: int) -> None:
        sink = sys.stderr.fileno() if self._sink is None else self._sink
        with os.fdopen(reader, "rb") as lines:
            while line := lines.readline(_MAX_LINE_BYTES):
                self._lines.append(line)
                try:
                    os.write(sink, line)
                except OSError:
                    # A full disk or a reader that left: the engine goes on.
                    continue

    def tail(self, max_bytes: int = 4000) -> str:
        """The end of what it printed, all of it once it has ended."""
        if self._copier is not None:
            self._copier.join(1.0)
        return b"".join(self._lines)[-max_bytes:].decode(errors="replace").strip()

    def close(self) -> None:
        """The engine has ended: nothing more is copied."""
        if self._copier is not None:
            self._copier.join(1.0)
            self._copier = None
        if self._sink is not None:
            os.close(self._sink)
            self._sink = None
