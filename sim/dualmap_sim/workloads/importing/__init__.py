"""Other people's logs as traces: what was asked, without its text."""

from dualmap_sim.workloads.importing.convert import (
    FORMATS,
    ImportOptions,
    ImportReport,
    import_trace,
)

__all__ = ["FORMATS", "ImportOptions", "ImportReport", "import_trace"]
