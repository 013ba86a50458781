"""deploy/grafana: a dashboard whose every query asks for what exists, of sources that are provisioned."""

import json
from typing import Any

import pytest
import yaml

from ..metric_list import ROOT, check_expression, known_series

GRAFANA = ROOT / "deploy" / "grafana"
BOARD = json.loads((GRAFANA / "dashboards" / "dualmap.json").read_text())
QUERIES: dict[str, dict[str, Any]] = {
    f"{panel['title']}-{target['refId']}": target for panel in BOARD["panels"] for target in panel["targets"]
}


@pytest.mark.parametrize("query", QUERIES)
def test_it_asks_for_what_exists(query: str) -> None:
    expression = QUERIES[query]["expr"].replace("$__rate_interval", "1m")
    assert 'pool=~"$pool"' in expression or "ALERTS" in expression
    check_expression(expression)


def test_the_pools_are_those_of_a_metric_that_exists() -> None:
    [variable] = BOARD["templating"]["list"]
    metric, label = variable["query"]["query"].removeprefix("label_values(").rstrip(")").split(", ")
    assert label in known_series()[metric]


def test_every_source_is_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/datasources.yml").read_text())[
        "datasources"
    ]
    uids = {source["uid"] for source in sources}
    used = {panel["datasource"]["uid"] for panel in BOARD["panels"]}
    used |= {query["datasource"]["uid"] for query in QUERIES.values()}
    assert used <= uids
    [prometheus] = [source for source in sources if source["uid"] == "prometheus"]
    assert {e["datasourceUid"] for e in prometheus["jsonData"]["exemplarTraceIdDestinations"]} <= uids


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "shown",
    [
        "slo_missed",
        "ttft_seconds",
        "cached_tokens",
        "load_spread",
        "moves_total",
        "escape",
        "live_charges",
        "ttft_error",
    ],
)
def test_what_an_operator_asks_for_is_on_it(shown: str) -> None:
    assert any(shown in query["expr"] for query in QUERIES.values())
