"""The tables of the page."""

from collections.abc import Callable, Mapping, Sequence

from bench.peers.capacity import capacity
from bench.peers.outcome import Outcome
from bench.peers.schedule import shares
from bench.peers.settings import RATES
from bench.router.measures import Figure, Findings
from bench.router.subjects import ROUTER
from dualmap_sim.study.tables import Column, Table, make_table

_SHORT_OVERHEAD = (("CPU per 8 KB request", "CPU ms/request"), ("CPU per streamed chunk", "CPU us/chunk"))


def runs_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per run."""
    columns: list[Column[Outcome]] = [
        Column("subject", lambda one: one.subject),
        Column("req/s", lambda one: one.rate_req_s, "{:g}"),
        Column("within SLO", lambda one: _marked(one, one.within_slo_share)),
        *_common(),
        Column("errors", lambda one: sum(one.errors.values()), "{:d}"),
    ]
    return make_table("runs", columns, outcomes)


def fleet_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per fleet."""
    columns: list[Column[Outcome]] = [
        Column("subject", lambda one: one.subject),
        Column(
            "routers",
            lambda one: f"{one.routers}, half go and come back" if one.changes else str(one.routers),
        ),
        Column("req/s", lambda one: one.rate_req_s, "{:g}"),
        Column("within SLO", lambda one: _marked(one, one.within_slo_share)),
        *_common(),
        Column("errors", lambda one: sum(one.errors.values()), "{:d}"),
        Column("asked again", lambda one: one.asked_again, "{:d}"),
    ]
    return make_table("fleets", columns, outcomes)


def _marked(outcome: Outcome, share: float) -> str:
    return f"{share:.1%}" + (" !" if outcome.doubt else "")


def settings_table(outcomes: Mapping[str, Sequence[Outcome | None]]) -> Table:
    """A row per setting: who was in time, at one rate of each workload, and how much was cached."""
    columns: list[Column[str]] = [Column("settings", lambda name: name)]
    for number, (workload, rate) in enumerate(RATES.items()):
        columns.append(
            Column(f"{workload} at {rate:g}/s, within SLO", _shown(outcomes, number, "within_slo_share"))
        )
        columns.append(Column("cached", _shown(outcomes, number, "cached_share")))
    return make_table("settings", columns, list(outcomes))


def _shown(
    outcomes: Mapping[str, Sequence[Outcome | None]], number: int, field: str
) -> Callable[[str], str | None]:
    def shown(name: str) -> str | None:
        one = outcomes[name][number]
        return None if one is None else _marked(one, getattr(one, field))

    return shown


def _common() -> list[Column[Outcome]]:
    return [
        Column("p50 s", lambda one: one.ttft_s[0]),
        Column("p90 s", lambda one: one.ttft_s[1]),
        Column("p99 s", lambda one: one.ttft_s[2], "{:.1f}"),
        Column("cached", lambda one: one.cached_share, "{:.1%}"),
        Column("load cv", lambda one: one.load_cv),
        # Routers that were started again began their clocks anew.
        Column("router CPU ms/request", lambda one: one.router_cpu_ms or None),
    ]


def capacities_table(
    curves: Mapping[str, Mapping[str, Sequence[Outcome]]], overhead: Findings | None
) -> Table:
    """A row per subject: its capacity on each workload, and what its router costs."""
    subjects = list(dict.fromkeys(name for by_name in curves.values() for name in by_name))
    columns: list[Column[str]] = [Column("subject", lambda name: name)]
    for workload, by_name in curves.items():
        columns.append(Column(f"{workload}, req/s at 90 %", _capacity_of(by_name)))
    if overhead is not None:
        for measure, head in _SHORT_OVERHEAD:
            columns.append(
                Column(head, _median_of(overhead, measure), "{:.2f}" if "ms" in head else "{:.0f}")
            )
    return make_table("capacity", columns, subjects)


def _capacity_of(by_name: Mapping[str, Sequence[Outcome]]) -> Callable[[str], str | None]:
    def shown(name: str) -> str | None:
        value, mark = capacity(shares(by_name.get(name, ())))
        return None if value is None else f"{mark}{value:.2f}"

    return shown


def _median_of(overhead: Findings, measure: str) -> Callable[[str], float | None]:
    values = {one.subject: one.median for one in overhead.figures if one.measure == measure}
    return lambda name: values.get(ROUTER if name == "dualmap" else name)


def overhead_table(findings: Findings) -> str:
    """A row per measure, a column per router, as markdown."""
    subjects = list(dict.fromkeys(one.subject for one in findings.figures))
    by_key = {(one.measure, one.subject): one for one in findings.figures}
    names = ["dualmap" if name == ROUTER else name for name in subjects]
    lines = [f"| | {' | '.join(names)} |", "|---" + "|---:" * len(subjects) + "|"]
    for measure in dict.fromkeys(one.measure for one in findings.figures):
        cells = (_figure(by_key.get((measure, subject))) for subject in subjects)
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = min(figure.values), max(figure.values)
    spread = f" ({_number(low)}-{_number(high)})" if len(figure.values) > 1 else ""
    return f"{_number(figure.median)} {figure.unit}{spread}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
