import base64
import re
from pathlib import Path

import pytest

from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.study import report
from dualmap_sim.study.comparison import Case, compare, curves, subjects, verdict
from dualmap_sim.study.page import Section
from dualmap_sim.study.runs import Run, RunTask
from dualmap_sim.study.source import BuiltinSource
from dualmap_sim.study.tables import Column, Table, capacity_table, case_table, make_table, markdown


def test_a_table_marks_the_best() -> None:
    columns: list[Column[tuple[str, float | None]]] = [
        Column("who", lambda item: item[0]),
        Column("rate", lambda item: item[1], "{:.1f}", 1),
    ]
    table = make_table("t", columns, [("a", 1.0), ("b|", 2.04), ("c", 2.02), ("d", None)], "said", ranked=1)
    assert table.best == {(1, 1), (2, 1)}
    assert table.marked == 1
    text = markdown(table)
    assert "| a | 1.0 |" in text
    assert "**2.0**" in text
    assert text.endswith("said")


def test_a_page_has_its_tables_and_plots(tmp_path: Path) -> None:
    case = Case(BuiltinSource("unique", count=150), FleetSetup(num_instances=2))
    members = subjects(case, ["dualmap", "least-loaded", "pool-fcfs"])
    measured = compare([(case, members)], 0.9, (0,), tolerance=0.2)
    said = verdict(measured)
    assert re.match(
        r"dualmap serves [\d.]+ requests/s within the objective, [\d.]+ times the best baseline", said
    )
    runs = [
        Run(RunTask(one.subject, case.source, one.capacity.per_seed[0]), one.capacity.at_capacity)
        for one in measured
        if one.capacity.at_capacity is not None
    ]
    table = capacity_table(case.name, measured)
    assert float(table.rows[0][2]) >= float(table.rows[-1][2])
    plots = report.case_plots("x-", runs, curves(measured, 0)[:12], 0.9)
    section = Section("A & B", [table, case_table("all", measured)], plots)
    page = report.write_report(tmp_path / "r", "Title <1>", "about", said, [section], "end")
    html = page.read_text()
    assert "Title &lt;1&gt;" in html
    assert said.replace("'", "&#x27;") in html
    assert "<script" not in html and "http" not in html
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(images) == len(plots) == 4
    for plot, image in zip(plots, images, strict=True):
        assert base64.b64decode(image) == plot.png == (tmp_path / "r" / plot.name).read_bytes()
        assert plot.png.startswith(b"\x89PNG")


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(report.PlotsMissingError, match=r"pip install 'dualmap\[plots\]'"):
        report.need_plots()


def test_an_empty_table_is_a_table() -> None:
    assert markdown(Table("t", ("a", "b"), ())) == "| a | b |\n|---|---:|"
