"""A system in which every part has a wall clock of its own, which a test can set while it runs."""

import struct
from pathlib import Path

from dualmap_cli.stack import Stack


class ClockedStack(Stack):
    """A `Stack` of parts for which `stepped_clock/` is found before the standard library."""

    def environment(self, name: str) -> dict[str, str]:
        """With the variables that give a process a clock of its own."""
        self.set_clock(name, 0.0)
        here = Path(__file__).parent / "stepped_clock"
        return {
            **super().environment(name),
            "PYTHONPATH": str(here),
            "STEPPED_CLOCK": str(self._clock(name)),
        }

    def set_clock(self, name: str, ahead_s: float) -> None:
        """Put a part's wall clock that far before or behind this machine's."""
        with self._clock(name).open("r+b" if self._clock(name).exists() else "w+b") as file:
            file.write(struct.pack("d", ahead_s))

    def _clock(self, name: str) -> Path:
        return self.logs / f"{name}.clock"
