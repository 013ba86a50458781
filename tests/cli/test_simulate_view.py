"""Tables of a simulation on narrow terminals: every cell can be read."""

import io

import pytest
from rich.console import Console

from dualmap_cli.simulate.view import show
from dualmap_sim.study.tables import Table

COLUMNS = ("policy", *(f"column {number}" for number in range(14)))
ROWS = tuple((name, *(f"{number}.25" for number in range(14))) for name in ("dualmap", "least-loaded"))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_wide_table_goes_on_below(width: int) -> None:
    out = io.StringIO()
    table = Table("Some figures", COLUMNS, ROWS, marked=0)
    show(Console(file=out, width=width), "A verdict.", [table], "facts")
    text = out.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for cell in (*COLUMNS, "13.25", "* dualmap", "least-loaded"):
        assert cell in text
    assert text.count("Some figures") == 1
