"""CPU clocks of processes and of the machine."""

import time
from pathlib import Path
from typing import NamedTuple

import psutil


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that a process has used; to the nanosecond, where /proc/<pid>/stat has ticks."""
    # The clock id that clock_getcpuclockid(3) makes: ~pid, then the scheduler clock of a whole process.
    return time.clock_gettime((~pid << 3) | 2)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


class MachineTime(NamedTuple):
    """CPU time of all cores since boot, in ticks."""

    busy: int
    total: int

    def share_since(self, before: "MachineTime") -> float:
        """The share of all cores that was busy since `before`."""
        return (self.busy - before.busy) / max(self.total - before.total, 1)


def machine_time() -> MachineTime:
    """What /proc/stat says now."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return MachineTime(sum(ticks) - idle, sum(ticks))
