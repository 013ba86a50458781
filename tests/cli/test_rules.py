"""deploy/prometheus: rules that use what exists, alerts with a runbook each, and each seen to fire and to clear."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualmap_router.metrics import TTFT_BUCKETS
from dualmap_router.settings import RouterSettings

from ..metric_list import PROMETHEUS, ROOT, check_expression, known_series, rules, uses
from ..needs import needs

ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules("recording.yml")}


@pytest.mark.parametrize("name", [*RECORDED, *ALERTS])
def test_it_uses_what_exists(name: str) -> None:
    check_expression({**RECORDED, **ALERTS}[name]["expr"])


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(dualmap_ttft_second_bucket[5m])", "is in no list"),
        ('dualmap_slo_total{missed="no"}', "has no"),
        ("dualmap_ttft_seconds{le='5.0'}", "is in no list"),
    ],
)
def test_what_does_not_exist_is_found(expression: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_expression(expression)


def test_a_label_that_nothing_has_cannot_be_grouped_by() -> None:
    with pytest.raises(AssertionError):
        check_expression("sum by (tenant) (rate(dualmap_requests_total[5m]))")


@pytest.mark.parametrize("alert", ALERTS)
def test_it_says_what_is_wrong_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == alert.lower()
    assert f"\n### {alert}\n" in (ROOT / page).read_text()


def test_every_recorded_series_is_listed() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text().partition("## Recording rules")[2]
    listed = set()
    for line in text.splitlines():
        names = re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("| `") else "")
        # The list writes what series have in common once: `pool:x:p50`, `:p90`.
        stem = names[0].rpartition(":")[0] if names else ""
        listed |= {stem + name if name.startswith(":") else name for name in names}
    assert listed == set(RECORDED)


def test_an_objective_is_an_edge_of_the_buckets() -> None:
    assert RouterSettings(redis_url="redis://x").slo_ttft_s in TTFT_BUCKETS
    edges = [edge for edge in TTFT_BUCKETS if 0.1 <= edge <= 10]
    assert all(after <= 2 * before for before, after in pairwise(edges))
    listed = (ROOT / "docs" / "metrics.md").read_text()
    *most, last = (f"{edge:g}" for edge in TTFT_BUCKETS)
    assert f"{', '.join(most)} and {last} s" in listed


def promtool(*args: str, cwd: Path = PROMETHEUS) -> None:
    command = ["promtool", *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    config = (PROMETHEUS / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(config.replace("/etc/prometheus", str(PROMETHEUS)))
    promtool("check", "config", "prometheus.yml", cwd=tmp_path)


@needs("promtool")
def test_alerts_fire_and_clear() -> None:
    promtool("test", "rules", "alerts_test.yml")


def cases() -> list[tuple[str, bool]]:
    """(alert, whether it is expected to fire) in the order of the test file, in time."""
    tests: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    return [
        (case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]
    ]


@pytest.mark.parametrize("alert", ALERTS)
def test_both_are_tested(alert: str) -> None:
    fires = [fires for name, fires in cases() if name == alert]
    assert True in fires
    # It clears after it has fired.
    assert False in fires[fires.index(True) :]


def test_the_test_feeds_series_that_exist() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    known = known_series()
    for test in tests:
        for series in test["input_series"]:
            [(name, labels)] = uses(series["series"])
            assert name in known
            assert labels <= known[name]
