"""Capacities that were found already: an interrupted bench goes on where it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from bench.policies.config import Config
from dualmap_sim.fleet.capacity import Capacity
from dualmap_sim.study.capacities import CapacityTask, find_all
from dualmap_sim.study.comparison import Case, Measured
from dualmap_sim.study.subject import Subject

_BATCH = 4
"""Cells per process between two saves."""


class Cells:
    """Capacities by what they are of, in one JSON file."""

    def __init__(self, path: Path, code: str) -> None:
        """`code` names the state of the code: another one finds nothing."""
        self._path = path
        self._code = code
        self._found: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}

    def measure(
        self, pairs: Sequence[tuple[Case, Subject]], config: Config, jobs: int, say: Callable[[str], None]
    ) -> list[Measured]:
        """Find what is missing, a few at a time, and give all of it."""
        tasks = [
            CapacityTask(subject, case.source, config.share, config.seeds, config.tolerance)
            for case, subject in pairs
        ]
        missing = [task for task in tasks if self._key(task) not in self._found]
        size = jobs * _BATCH
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            for task, capacity in zip(batch, find_all(batch, jobs, say), strict=True):
                self._found[self._key(task)] = msgspec.to_builtins(capacity)
            self._save()
        return [
            Measured(case, subject, msgspec.convert(self._found[self._key(task)], Capacity))
            for (case, subject), task in zip(pairs, tasks, strict=True)
        ]

    def _key(self, task: CapacityTask) -> str:
        return xxhash.xxh3_128_hexdigest(f"{self._code} {task!r}".encode())

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self._found))
        partial.replace(self._path)
