"""docs/metrics.md as data, and the names and labels that a PromQL expression uses."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
TARGET_LABELS = frozenset({"pool", "job", "instance", "router", "rebalancer"})
"""Those that the scrape configuration gives to every series."""
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Metric:
    """A row of the list; a counter's name ends with `_total`."""

    name: str
    kind: str
    labels: frozenset[str]

    @property
    def series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """The series that a scrape stores, with the labels of each."""
        for suffix in _SUFFIXES.get(self.kind, ("",)):
            yield self.name + suffix, self.labels | ({"le"} if suffix == "_bucket" else set())


def documented() -> dict[str, Metric]:
    """Every metric of the list, by name."""
    rows = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if line.startswith("| `dualmap_") and len(cells) == 4:
            name, kind, labels, meaning = cells
            assert name not in rows, f"{name} is listed twice"
            assert meaning, name
            rows[name] = Metric(name, kind, frozenset(filter(None, labels.split(", "))))
    return rows


def rules(file: str) -> list[dict[str, Any]]:
    """The rules of a file of deploy/prometheus."""
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def known_series() -> dict[str, frozenset[str]]:
    """Every series that exists, recorded ones and Prometheus' own among them, with its labels."""
    series = {name: labels for metric in documented().values() for name, labels in metric.series}
    for rule in rules("recording.yml"):
        series[rule["record"]] = frozenset()
    series |= {"up": frozenset(), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
    return {name: labels | TARGET_LABELS for name, labels in series.items()}


def uses(expression: str) -> list[tuple[str, frozenset[str]]]:
    """(series, labels matched) of each selector; raises ValueError for what is no PromQL."""
    found: list[tuple[str, frozenset[str]]] = []

    def look(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append((node.name or "", frozenset(m.name for m in node.matchers.matchers)))

    promql.walk(promql.parse(expression), look)
    return found


def grouped_by(expression: str) -> frozenset[str]:
    """Every label that an aggregation or a match names."""
    found: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching:
            found.update(node.modifier.matching.labels)

    promql.walk(promql.parse(expression), look)
    return frozenset(found)


def check_expression(expression: str) -> None:
    """Every series exists with the labels that are asked for, and every label that is grouped by is one of theirs."""
    known = known_series()
    selected = uses(expression)
    assert selected, f"nothing is selected: {expression}"
    for name, labels in selected:
        assert name in known, f"{name} is in no list: {expression}"
        assert labels <= known[name], f"{name} has no {sorted(labels - known[name])}: {expression}"
    there = frozenset[str]().union(*(known[name] for name, _ in selected))
    assert grouped_by(expression) <= there, expression
