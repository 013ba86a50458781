"""How a run and its report look to a person."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from dualmap_cli.load.percentiles import Percentiles
from dualmap_cli.load.progress import Progress
from dualmap_cli.load.report import GroupReport, LoadReport

_LINE_EVERY_S = 5.0


class ProgressView(Protocol):
    """Shows progress while it is entered."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen as it was."""

    def show(self, progress: Progress) -> None:
        """Show how the run is going now."""


def progress_view(console: Console) -> ProgressView:
    """A live table on a terminal, a line every few seconds elsewhere."""
    return LiveView(console) if console.is_terminal else LineView(console)


class LineView:
    """One line every few seconds, for logs."""

    def __init__(self, console: Console, every_s: float = _LINE_EVERY_S) -> None:
        self._console = console
        self._every_s = every_s
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def show(self, progress: Progress) -> None:
        """Print the line when it is time."""
        now = time.monotonic()
        if now - self._shown_at >= self._every_s:
            self._shown_at = now
            self._console.print(Text(progress_line(progress)), soft_wrap=True)


class LiveView:
    """Redraws in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        """Redraw."""
        self._live.update(progress_panel(progress), refresh=True)


def progress_line(progress: Progress) -> str:
    """A run's state in one line."""
    total = "" if progress.total is None else f"/{progress.total}"
    return (
        f"{progress.elapsed_s:.0f} s: sent {progress.sent}{total}, answered {progress.answered}, "
        f"in flight {progress.in_flight}, ttft p50 {seconds(progress.ttft_p50_s)} "
        f"p90 {seconds(progress.ttft_p90_s)}, within SLO {share(progress.within_slo_share)}, "
        f"errors {progress.errors}, moves {progress.moves}"
    )


def progress_panel(progress: Progress) -> RenderableType:
    """A run's state as a bar, a line and a bar per instance (requests of the last seconds)."""
    # A grid, since a bar on its own does not end its line.
    rows = Table.grid()
    if progress.total:
        rows.add_row(ProgressBar(total=progress.total, completed=progress.answered + progress.errors))
    rows.add_row(Text(progress_line(progress)))
    if progress.instances:
        bars = Table.grid(padding=(0, 1))
        most = max(progress.instances.values())
        for name, count in progress.instances.items():
            bars.add_row(Text(name), ProgressBar(total=most, completed=count, width=40), str(count))
        rows.add_row(bars)
    return rows


def report_view(report: LoadReport) -> RenderableType:
    """The report as tables."""
    parts: list[RenderableType] = [_summary(report), _latencies(report)]
    if report.per_instance:
        parts.append(_groups("instance", [(group.instance, group) for group in report.per_instance]))
    if len(report.per_router) > 1:
        parts.append(_groups("router", [(group.router, group) for group in report.per_router]))
    return Group(*parts)


def print_report(report: LoadReport) -> None:
    """Print the report to standard output."""
    Console(file=sys.stdout).print(report_view(report))


def _summary(report: LoadReport) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "sent": f"{report.sent} in {report.duration_s:.1f} s ({number(report.rate_req_s)} req/s)",
        "answered": f"{report.answered} ({number(report.goodput_req_s)} req/s within SLO)",
        "within SLO": share(report.within_slo_share),
        "errors": f"{report.errors}{_counts(report.errors_by_kind)}",
        "cached tokens": share(report.cached_token_share),
        "reasons": _counts(report.reasons).strip(" ()") or "-",
        "escapes, moves": f"{report.escapes}, {report.moves}",
        "duplicates": str(report.duplicates),
    }
    if report.unfinished:
        rows["unfinished"] = str(report.unfinished)
    if report.held_back:
        rows["held back"] = f"{report.held_back} requests waited for the bound on requests in flight"
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _latencies(report: LoadReport) -> Table:
    table = Table("seconds", *(Column(name, justify="right") for name in ("p50", "p90", "p99")), box=SIMPLE)
    rows: dict[str, Percentiles] = {
        "TTFT": report.ttft_s,
        "between tokens": report.itl_s,
        "end to end": report.e2e_s,
        "TTFT prediction error": report.ttft_error_s,
        "generator lag": report.lag_s,
    }
    for name, values in rows.items():
        table.add_row(name, *map(seconds, (values.p50, values.p90, values.p99)))
    return table


def _groups(title: str, groups: list[tuple[str, GroupReport]]) -> Table:
    names = ("requests", "share", "cached tokens", "TTFT p90")
    table = Table(title, *(Column(name, justify="right") for name in names), box=SIMPLE)
    for name, group in groups:
        cached = share(group.cached_token_share)
        table.add_row(
            escape(name), str(group.requests), share(group.share), cached, seconds(group.ttft_p90_s)
        )
    return table


def _counts(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{name} {count}' for name, count in counts.items())})" if counts else ""


def number(value: float | None) -> str:
    """A plain number, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """A time in seconds, or a dash."""
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{value:.1%}"
