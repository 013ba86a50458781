"""The load generator: open-loop replay against OpenAI endpoints, and what came of it."""

from dualmap_cli.load.options import Check, LoadError, LoadOptions, Slo, check_target
from dualmap_cli.load.percentiles import Percentiles
from dualmap_cli.load.progress import Progress
from dualmap_cli.load.record import FailedTry, RequestRecord
from dualmap_cli.load.report import InstanceReport, LoadReport, RouterReport, make_report
from dualmap_cli.load.runner import LoadResult, run_load

__all__ = [
    "Check",
    "FailedTry",
    "InstanceReport",
    "LoadError",
    "LoadOptions",
    "LoadReport",
    "LoadResult",
    "Percentiles",
    "Progress",
    "RequestRecord",
    "RouterReport",
    "Slo",
    "check_target",
    "make_report",
    "run_load",
]
