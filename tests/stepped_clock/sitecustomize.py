"""Imported by every part of a `ClockedStack` as it starts: its wall clock can be set while it runs.

The file STEPPED_CLOCK holds how many seconds the clock is ahead, as a double. The monotonic clocks are left alone, as
by an administrator or NTP.
"""

import mmap
import os
import struct
import time

with open(os.environ["STEPPED_CLOCK"], "rb") as _file:  # noqa: PTH123 - before the standard library is all there
    _ahead = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)
_time, _time_ns = time.time, time.time_ns


def _ahead_s() -> float:
    (ahead_s,) = struct.unpack("d", _ahead[:8])
    return float(ahead_s)


time.time = lambda: _time() + _ahead_s()
time.time_ns = lambda: _time_ns() + int(_ahead_s() * 1e9)
