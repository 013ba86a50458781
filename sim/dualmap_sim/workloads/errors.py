"""What can be wrong with a workload's description."""


class WorkloadError(ValueError):
    """A workload cannot be made as asked; the message names the value at fault."""


class TraceError(WorkloadError):
    """A trace file cannot be read; the message names the file and the line."""


class LineError(ValueError):
    """One line of a trace or a log cannot be read; whoever knows file and line makes it a TraceError."""
