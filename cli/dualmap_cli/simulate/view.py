"""How the results of a simulation look on a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dualmap_sim.study.subject import DEFAULT_POLICY
from dualmap_sim.study.tables import Table


def show(console: Console, verdict: str, tables: Sequence[Table], facts: str) -> None:
    """Tables, what they mean, and under what they hold."""
    for table in tables:
        console.print(_table(table))
        if table.caption:
            console.print(Text(table.caption, style="dim"))
    console.print(Text(verdict, style="bold"))
    console.print(Text(facts, style="dim"))


def _table(table: Table) -> RichTable:
    view = RichTable(box=SIMPLE, title=table.title, title_justify="left", title_style="bold")
    for place, name in enumerate(table.columns):
        view.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for at, row in enumerate(table.rows):
        cells = [
            Text(cell, style="bold" if (at, place) in table.best else "") for place, cell in enumerate(row)
        ]
        if row[0] == DEFAULT_POLICY:
            cells[0].stylize("cyan")
        if at == table.marked:
            cells[0] = Text("* ", style="bold green") + cells[0]
        view.add_row(*cells)
    return view
