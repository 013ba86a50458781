"""Follows the API keys file: what changes in it holds a second later, and a broken one changes nothing."""

import asyncio
import logging
import os
from pathlib import Path

from dualmap_router.api_keys import MAX_FILE_BYTES, KeyEntry, Keyring, KeysError, read_entries

log = logging.getLogger(__name__)

PERIOD_S = 1.0

_Stamp = tuple[int, int, int, int]


class KeyWatch:
    """The last good keys of a file."""

    def __init__(self, path: str) -> None:
        """Reads the file; KeysError when it cannot be used."""
        self._path = Path(path)
        self._stamp: _Stamp | None = None
        self._last: _Stamp | None = None
        entries = self._read()
        self.keys = Keyring(entries or [])
        self.stale = False
        """The file as it is now cannot be used."""

    async def poll(self) -> None:
        """Take the file's keys if it has changed."""
        try:
            # Network file systems may keep a caller waiting.
            entries = await asyncio.to_thread(self._read)
        except KeysError as exc:
            if not self.stale:
                log.error("keys.unusable", extra={"file": str(self._path), "error": str(exc)})
            self.stale = True
            return
        if self.stale:
            self.stale = False
            log.info("keys.usable", extra={"file": str(self._path)})
        if entries is not None:
            self.keys = Keyring(entries)
            log.info("keys.loaded", extra={"file": str(self._path), "keys": len(self.keys)})

    def _read(self) -> list[KeyEntry] | None:
        """The file's entries; None if it has been read as it is."""
        try:
            # By name: Kubernetes swaps a symlink on the way to it.
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
                if stamp == self._stamp:
                    return None
                text = file.read(MAX_FILE_BYTES + 1)
            entries = read_entries(text)
        except (OSError, KeysError) as exc:
            self._stamp = self._last = None
            raise KeysError(str(exc)) from exc
        # A second look a second later: what is written within one tick of the file's clock shows no other time.
        self._stamp, self._last = (stamp if stamp == self._last else None), stamp
        return entries
