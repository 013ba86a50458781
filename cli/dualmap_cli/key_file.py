"""Changing an API keys file: whole or not at all, one at a time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from dualmap_router.api_keys import KeyEntry, KeyFile, KeysError, check_entries, read_entries

_NEW_FILE_MODE = 0o640


def load_entries(path: Path) -> list[KeyEntry]:
    """The entries of a file; KeysError names it."""
    try:
        return read_entries(path.read_bytes())
    except (OSError, KeysError) as exc:
        raise KeysError(f"{path}: {exc}") from exc


def change_entries(path: Path, change: Callable[[Sequence[KeyEntry]], Sequence[KeyEntry]]) -> None:
    """Replace a file by what `change` makes of its entries; one that is not there has none."""
    path = path.resolve()  # the file and not a link to it
    with _alone(path.parent):
        there = path.exists()
        entries = list(change(load_entries(path) if there else []))
        check_entries(entries)
        mode = path.stat().st_mode & 0o777 if there else _NEW_FILE_MODE
        _replace(path, msgspec.json.format(msgspec.json.encode(KeyFile(entries)), indent=2) + b"\n", mode)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else changes a keys file in this folder meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise KeysError(f"{folder}: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: bytes, mode: int) -> None:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as exc:
        raise KeysError(f"{path.parent}: {exc.strerror}") from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
