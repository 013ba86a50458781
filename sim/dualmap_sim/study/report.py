"""What a study leaves in a directory: its plots as PNG and one page with all of it."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from dualmap_sim.study.page import Plot, Section, html_page
from dualmap_sim.study.runs import Run
from dualmap_sim.study.subject import DEFAULT_POLICY

_MOST_ROWS = 24


class PlotsMissingError(Exception):
    """matplotlib is not installed."""


def need_plots() -> None:
    """A PlotsMissingError that says what to install, if that is needed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotsMissingError("plots need matplotlib: pip install 'dualmap[plots]'")


def case_plots(prefix: str, representative: Sequence[Run], curve: Sequence[Run], share: float) -> list[Plot]:
    """The plots of one case: `representative` has a run per policy, `curve` several rates of each."""
    need_plots()
    from dualmap_sim.study import plots

    runs = sorted(representative, key=lambda run: run.task.subject.name != DEFAULT_POLICY)[:_MOST_ROWS]
    where = runs[0].task.source.name
    rates = sorted({run.task.rate_req_s for run in runs})
    at = f"at {rates[0]:.2f} requests/s" if len(rates) == 1 else "each at its own capacity"
    made = [
        Plot(
            f"{prefix}ttft.png",
            f"Distribution of TTFT, {where}",
            f"Share of the requests whose first token came within so many seconds, {at}.",
            plots.ttft_plot(f"TTFT, {where}", runs),
        ),
        Plot(
            f"{prefix}load.png",
            f"Load by instance, {where}",
            f"A dot is an instance, {at}: the closer to 1, the more even the load.",
            plots.load_plot(f"Load by instance, {where}", runs),
        ),
        Plot(
            f"{prefix}hits.png",
            f"Cache hits, {where}",
            f"Prompt tokens that were found cached, {at}, and in pale what one infinite cache would find.",
            plots.hits_plot(f"Cache hits, {where}", runs),
        ),
    ]
    if len({run.task.rate_req_s for run in curve}) > 1:
        made.insert(
            1,
            Plot(
                f"{prefix}attainment.png",
                f"Attainment against rate, {where}",
                f"Share of the requests within SLO as the rate grows; the dashed line is the {share:.0%} asked for.",
                plots.attainment_plot(f"Attainment, {where}", curve, share),
            ),
        )
    return made


def write_report(
    directory: Path, title: str, about: str, verdict: str, sections: Sequence[Section], footer: str
) -> Path:
    """Write every plot and the page; the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for plot in section.plots:
            (directory / plot.name).write_bytes(plot.png)
    page = directory / "index.html"
    page.write_text(html_page(title, about, verdict, sections, footer), encoding="utf-8")
    return page
