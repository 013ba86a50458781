"""How the results of a simulation look on a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dualmap_sim.study.subject import DEFAULT_POLICY
from dualmap_sim.study.tables import Table

_PADDING = 3
_EDGES = 4


def show(console: Console, verdict: str, tables: Sequence[Table], facts: str) -> None:
    """Tables, what they mean, and under what they hold."""
    for table in tables:
        for part in _parts(table, console.width):
            console.print(_table(table, part))
        if table.caption:
            console.print(Text(table.caption, style="dim"))
    console.print(Text(verdict, style="bold"))
    console.print(Text(facts, style="dim"))


def _parts(table: Table, width: int) -> list[list[int]]:
    """The columns that fit beside each other, each part beginning with the first one."""
    widths = [
        max(len(name), *(len(row[place]) for row in table.rows), 1) + _PADDING
        for place, name in enumerate(table.columns)
    ]
    parts, room = [[0]], width - widths[0] - _EDGES
    for place in range(1, len(widths)):
        if widths[place] > room and len(parts[-1]) > 1:
            parts.append([0])
            room = width - widths[0] - _EDGES
        parts[-1].append(place)
        room -= widths[place]
    return parts


def _table(table: Table, columns: Sequence[int]) -> RichTable:
    title = table.title if columns[1:2] == [1] or len(table.columns) == 1 else None
    view = RichTable(box=SIMPLE, title=title, title_justify="left", title_style="bold")
    for place in columns:
        view.add_column(table.columns[place], justify="left" if place == 0 else "right", no_wrap=True)
    for at, row in enumerate(table.rows):
        cells = [Text(row[place], style="bold" if (at, place) in table.best else "") for place in columns]
        if row[0] == DEFAULT_POLICY:
            cells[0].stylize("cyan")
        if at == table.marked:
            cells[0] = Text("* ", style="bold green") + cells[0]
        view.add_row(*cells)
    return view
