"""Tables of a study, for a terminal, a web page and markdown alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, NamedTuple, TypeVar

from dualmap_sim.fleet.result import GroupResult, RunResult
from dualmap_sim.study.comparison import Measured, best_baseline
from dualmap_sim.study.runs import Run
from dualmap_sim.study.subject import DEFAULT_POLICY, Subject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; `best` are the places (row, column) of the best values, `marked` is the best row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = field(default=frozenset())
    marked: int | None = None
    caption: str = ""


class Column(NamedTuple, Generic[T]):
    """One column: its head, its value, how that looks, and whether more (1) or less (-1) is better."""

    name: str
    value: Callable[[T], float | str | None]
    form: str = "{:.2f}"
    better: int = 0


def make_table(
    title: str, columns: Sequence[Column[T]], items: Sequence[T], caption: str = "", ranked: int | None = None
) -> Table:
    """A table of items, a row each; the best value of column `ranked` marks its row."""
    values = [[column.value(item) for column in columns] for item in items]
    best: set[tuple[int, int]] = set()
    for place, column in enumerate(columns):
        numbers = [value for row in values if isinstance(value := row[place], float | int)]
        if column.better and len(numbers) > 1:
            top = column.form.format(max(numbers) if column.better > 0 else min(numbers))
            best |= {(at, place) for at, row in enumerate(values) if _text(row[place], column.form) == top}
    marked = next((row for row, place in sorted(best) if place == ranked), None)
    rows = tuple(
        tuple(_text(value, column.form) for value, column in zip(row, columns, strict=True)) for row in values
    )
    return Table(title, tuple(column.name for column in columns), rows, frozenset(best), marked, caption)


def markdown(table: Table) -> str:
    """As a markdown table, best values bold."""
    lines = [f"| {' | '.join(table.columns)} |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
    for at, row in enumerate(table.rows):
        cells = (f"**{cell}**" if (at, place) in table.best else cell for place, cell in enumerate(row))
        lines.append(f"| {' | '.join(cells)} |")
    caption = f"\n\n{table.caption}" if table.caption else ""
    return "\n".join(lines) + caption


def capacity_table(title: str, measured: Sequence[Measured], caption: str = "", ranked: bool = True) -> Table:
    """Capacities, best first if they are to be ranked, and what the runs at capacity show."""
    shown = sorted(measured, key=lambda one: -one.capacity.rate_req_s) if ranked else measured
    baseline = best_baseline(measured)
    reference = baseline.capacity.rate_req_s if baseline is not None else 0.0

    def at(value: Callable[[RunResult], float]) -> Callable[[Measured], float | None]:
        return lambda one: None if one.capacity.at_capacity is None else value(one.capacity.at_capacity)

    columns: list[Column[Measured]] = [
        Column("policy", lambda one: one.subject.name),
        Column("order", lambda one: one.subject.order),
        Column("capacity req/s", lambda one: one.capacity.rate_req_s, better=1),
        Column("95 % interval", _interval),
        Column("vs best baseline", lambda one: one.capacity.rate_req_s / reference if reference else None),
        Column("p50 s", at(lambda run: run.ttft_s.p50), better=-1),
        Column("p90 s", at(lambda run: run.ttft_s.p90), better=-1),
        Column("p99 s", at(lambda run: run.ttft_s.p99), "{:.1f}", better=-1),
        Column("p99.9 s", at(lambda run: run.ttft_s.p999), "{:.1f}", better=-1),
        Column("hits", at(lambda run: run.hit_share), "{:.1%}", better=1),
        Column("load cv", at(lambda run: run.load_cv), better=-1),
        Column("moves", at(lambda run: run.moves), "{:,}"),
        Column("escapes", at(lambda run: run.escapes), "{:,}"),
        Column("preempted", at(lambda run: run.preemptions), "{:,}"),
    ]
    return make_table(title, columns, shown, caption, ranked=2)


class Averaged(NamedTuple):
    """The runs of one subject at one rate, a seed each."""

    subject: Subject
    rate_req_s: float
    results: tuple[RunResult, ...]

    def mean(self, value: Callable[[RunResult], float]) -> float:
        """Over the seeds."""
        return fmean(map(value, self.results))


def averaged(runs: Sequence[Run]) -> list[Averaged]:
    """Runs by subject and rate."""
    groups: dict[tuple[Subject, float], list[RunResult]] = {}
    for run in runs:
        groups.setdefault((run.task.subject, run.task.rate_req_s), []).append(run.result)
    return [Averaged(subject, rate, tuple(results)) for (subject, rate), results in groups.items()]


def run_table(title: str, runs: Sequence[Run], caption: str = "") -> Table:
    """What runs show, means over the seeds."""

    def mean(value: Callable[[RunResult], float]) -> Callable[[Averaged], float]:
        return lambda one: one.mean(value)

    columns: list[Column[Averaged]] = [
        Column("policy", lambda one: one.subject.name),
        Column("order", lambda one: one.subject.order),
        Column("req/s", lambda one: one.rate_req_s),
        Column("within SLO", mean(lambda run: run.within_slo_share), "{:.1%}", 1),
        Column("fixed", mean(lambda run: run.within_fixed_share), "{:.1%}", 1),
        Column("scaled", mean(lambda run: run.within_scaled_share), "{:.1%}", 1),
        Column("goodput", mean(lambda run: run.goodput_req_s), "{:.2f}", 1),
        Column("p50 s", mean(lambda run: run.ttft_s.p50), "{:.2f}", -1),
        Column("p90 s", mean(lambda run: run.ttft_s.p90), "{:.2f}", -1),
        Column("p99 s", mean(lambda run: run.ttft_s.p99), "{:.1f}", -1),
        Column("p99.9 s", mean(lambda run: run.ttft_s.p999), "{:.1f}", -1),
        Column("hits", mean(lambda run: run.hit_share), "{:.1%}", 1),
        Column("of ideal", mean(lambda run: run.hit_share / (run.ideal_hit_share or 1.0)), "{:.1%}", 1),
        Column("load cv", mean(lambda run: run.load_cv), "{:.2f}", -1),
        Column("moves", mean(lambda run: run.moves), "{:,.0f}"),
        Column("escapes", mean(lambda run: run.escapes), "{:,.0f}"),
        Column("preempted", mean(lambda run: run.preemptions), "{:,.0f}"),
    ]
    return make_table(title, columns, averaged(runs), caption, ranked=3)


class _GroupRow(NamedTuple):
    subject: Subject
    rate_req_s: float
    group: GroupResult


def slowdown_table(
    title: str, runs: Sequence[Run], groups: Callable[[RunResult], Sequence[GroupResult]], caption: str = ""
) -> Table:
    """Slowdowns by group, of each subject's run of the first seed."""
    firsts = {(run.task.subject, run.task.rate_req_s): run for run in reversed(runs)}
    rows = [
        _GroupRow(subject, rate, group)
        for (subject, rate), run in reversed(firsts.items())
        for group in groups(run.result)
        if group.num_requests
    ]
    columns: list[Column[_GroupRow]] = [
        Column("policy", lambda row: row.subject.name),
        Column("req/s", lambda row: row.rate_req_s),
        Column("requests of", lambda row: row.group.name or "(none)"),
        Column("number", lambda row: row.group.num_requests, "{:,}"),
        Column("within SLO", lambda row: row.group.within_slo_share, "{:.1%}"),
        Column("p50 x", lambda row: row.group.slowdown.p50),
        Column("p90 x", lambda row: row.group.slowdown.p90),
        Column("p99 x", lambda row: row.group.slowdown.p99, "{:.1f}"),
    ]
    return make_table(title, columns, rows, caption)


def case_table(title: str, measured: Sequence[Measured], caption: str = "") -> Table:
    """Capacities, a row per policy and a column per case; the default policy's gain in the last row."""
    cases = list(dict.fromkeys(one.case.name for one in measured))
    names = list(dict.fromkeys(one.subject.name for one in measured))
    rates = {(one.subject.name, one.case.name): one.capacity.rate_req_s for one in measured}
    columns: list[Column[str]] = [Column("policy", lambda name: name)]
    for case in cases:
        columns.append(Column(case, lambda name, case=case: rates.get((name, case)), better=1))  # type: ignore[misc]
    table = make_table(title, columns, names, caption)
    gains: list[str] = []
    for case in cases:
        baseline = best_baseline([one for one in measured if one.case.name == case])
        ours = rates.get((DEFAULT_POLICY, case))
        other = baseline.capacity.rate_req_s if baseline is not None else 0.0
        gains.append(f"{ours / other:.2f}x {baseline.subject.name}" if baseline and ours and other else "")
    if not any(gains):
        return table
    last = (f"{DEFAULT_POLICY} over best baseline", *gains)
    return Table(title, table.columns, (*table.rows, last), table.best, None, caption)


def _interval(one: Measured) -> str:
    low, high = one.capacity.ci
    return f"{low:.2f} to {high:.2f}" if len(one.capacity.per_seed) > 1 else "one seed"


def _text(value: float | str | None, form: str) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else form.format(value)
