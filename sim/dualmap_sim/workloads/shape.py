"""What the settings of workloads and patterns have in common."""

import math
from dataclasses import fields
from typing import Any

from dualmap_sim.workloads.errors import WorkloadError


class Shape:
    """Base of what is set by numbers: frozen dataclasses, each value within its bounds."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, field.name)
            positive = isinstance(field.default, int) or field.name.endswith("_mean")
            if not math.isfinite(value) or value < 0 or (positive and value < 1):
                low = "1 or more" if positive else "0 or more"
                raise WorkloadError(f"{field.name} must be {low}, not {value}")
