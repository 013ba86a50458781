"""A study as one HTML page that needs nothing else: its style inline, its plots embedded."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dualmap_sim.study.subject import DEFAULT_POLICY
from dualmap_sim.study.tables import Table

_CSS = """
:root { --ink: #22262b; --soft: #5c636d; --line: #e3e6ea; --ours: #d55e00; --paper: #ffffff; --back: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a4abb5; --line: #363b42; --paper: #1d2025; --back: #15171b; }
  figure img { background: #fff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 40px 0 10px; }
.about { color: var(--soft); margin: 0 0 20px; max-width: 75ch; }
.verdict { font-size: 18px; border-left: 4px solid var(--ours); background: var(--paper); margin: 0;
  padding: 14px 18px; max-width: 80ch; }
section.table { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.ours td:first-child { color: var(--ours); font-weight: 700; }
td b { font-weight: 700; }
.caption, figcaption { color: var(--soft); font-size: 13.5px; margin: 8px 2px 0; max-width: 85ch; }
.plots { display: grid; gap: 22px; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
@media (max-width: 520px) { .plots { grid-template-columns: 1fr; } }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 14px; }
figure img { width: 100%; height: auto; display: block; border-radius: 4px; }
footer { color: var(--soft); font-size: 13px; margin-top: 44px; }
code { font-size: 12.5px; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: the name of its file, its alternative text and what to see in it."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def html_page(title: str, about: str, verdict: str, sections: Sequence[Section], footer: str) -> str:
    """The page."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="about">{escape(about)}</p>\n'
        f'<p class="verdict">{escape(verdict)}</p>\n{body}\n'
        f"<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [_table(table) for table in section.tables]
    if section.plots:
        parts.append(f'<div class="plots">{"".join(map(_figure, section.plots))}</div>')
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = []
    for at, row in enumerate(table.rows):
        cells = "".join(
            f"<td><b>{escape(cell)}</b></td>" if (at, place) in table.best else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        rows.append(f'<tr class="ours">{cells}</tr>' if row[0] == DEFAULT_POLICY else f"<tr>{cells}</tr>")
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<section class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>{caption}"
    )


def _figure(plot: Plot) -> str:
    data = base64.b64encode(plot.png).decode()
    return (
        f'<figure><img alt="{escape(plot.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )
