"""The plots of a study, as PNG; matplotlib comes with `dualmap[plots]`.

The default policy is drawn first, thick and in one colour; up to six others have a colour each from Okabe and Ito's
palette, which the colour-blind can tell apart, and a line style of their own; whoever is left is grey.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dualmap_sim.study.runs import Run
from dualmap_sim.study.subject import DEFAULT_POLICY

_OURS = "#D55E00"
_OTHERS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 2)))
_GREY = "#B8BCC2"
_INK = "#30343A"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#8A9099",
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E8EB",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


def ttft_plot(title: str, runs: Sequence[Run]) -> bytes:
    """The distribution of TTFT, a line per policy; `runs` has one run of each."""

    def draw(axes: Any) -> None:
        names = _names(runs)
        styles = _styles(names)
        for run in reversed(runs):
            curve = run.result.ttft_curve_s
            served = 1.0 - run.result.unserved / max(run.result.num_requests, 1)
            shares = [served * place / max(len(curve) - 1, 1) for place in range(len(curve))]
            axes.plot(curve, shares, **styles[run.task.subject.name])
        slo = runs[0].task.subject.setup.slo
        if not slo.per_1k_tokens_s:
            _mark(axes, slo.base_s, f"SLO {slo.base_s:g} s")
        axes.set_xscale("log")
        axes.set_ylim(0.0, 1.0)
        axes.set_xlabel("time to first token, s")
        axes.set_ylabel("share of requests")
        _legend(axes, names)

    return _png(title, draw)


def attainment_plot(title: str, runs: Sequence[Run], share: float) -> bytes:
    """The share within SLO against the rate, a line per policy."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        point = (run.task.rate_req_s, run.result.within_slo_share)
        curves.setdefault(run.task.subject.name, []).append(point)
    return curves_plot(title, curves, share)


def curves_plot(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], share: float) -> bytes:
    """(rate, share within SLO) of each name, as lines, and a line at the share that is aimed at."""

    def draw(axes: Any) -> None:
        names = _ours_first(curves)
        styles = _styles(names)
        for name in reversed(names):
            axes.plot(*zip(*sorted(curves[name]), strict=True), marker="o", markersize=3, **styles[name])
        axes.axhline(share, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_ylim(0.0, 1.02)
        axes.set_xlabel("requests per second")
        axes.set_ylabel("share within SLO")
        _legend(axes, names)

    return _png(title, draw)


def load_plot(title: str, runs: Sequence[Run]) -> bytes:
    """Each instance's prefill time against the mean of its fleet: a dot per instance, a row per policy."""

    def draw(axes: Any) -> None:
        shown = [run for run in runs if len(run.result.busy_s) > 1]
        for row, run in enumerate(shown):
            busy_s = run.result.busy_s
            mean_s = sum(busy_s) / len(busy_s) or 1.0
            colour = _OURS if run.task.subject.name == DEFAULT_POLICY else _OTHERS[0]
            ratios = [value / mean_s for value in busy_s]
            axes.plot([min(ratios), max(ratios)], [row, row], color=colour, linewidth=1.2, alpha=0.5)
            axes.scatter(ratios, [row] * len(ratios), s=22, color=colour, alpha=0.75, linewidths=0)
        axes.axvline(1.0, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        _rows(axes, shown)
        axes.set_xlabel("prefill time of an instance over the fleet's mean")

    return _png(title, draw, rows=len(runs))


def hits_plot(title: str, runs: Sequence[Run]) -> bytes:
    """Hit share of each policy against what one infinite cache would find."""

    def draw(axes: Any) -> None:
        for row, run in enumerate(runs):
            ours = run.task.subject.name == DEFAULT_POLICY
            axes.barh(row, run.result.ideal_hit_share, height=0.62, color="#EDEFF2")
            axes.barh(row, run.result.hit_share, height=0.62, color=_OURS if ours else _OTHERS[0])
            text = f" {run.result.hit_share:.1%}"
            axes.text(run.result.hit_share, row, text, va="center", fontsize=8, color=_INK)
        _rows(axes, runs)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("prompt tokens found in cache; pale: an infinite cache")

    return _png(title, draw, rows=len(runs))


def _png(title: str, draw: Callable[[Any], None], rows: int = 0) -> bytes:
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, max(4.2, 1.2 + 0.27 * rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title)
        draw(axes)
        file = io.BytesIO()
        # Without the version in its metadata the same study gives the same file.
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _names(runs: Sequence[Run]) -> list[str]:
    return _ours_first(run.task.subject.name for run in runs)


def _ours_first(names: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(names), key=lambda name: name != DEFAULT_POLICY)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    free = list(zip(_OTHERS, _STYLES, strict=True))
    for name in names:
        if name == DEFAULT_POLICY:
            styles[name] = {"color": _OURS, "linewidth": 2.4, "zorder": 5}
        elif free:
            colour, style = free.pop(0)
            styles[name] = {"color": colour, "linewidth": 1.3, "linestyle": style}
        else:
            styles[name] = {"color": _GREY, "linewidth": 1.0}
    for name in names:
        styles[name]["label"] = name
    return styles


def _legend(axes: Any, names: Sequence[str]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = {name: place for place, name in enumerate(names)}
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: order[pair[1]])
    axes.legend(*zip(*pairs, strict=True), loc="center left", bbox_to_anchor=(1.01, 0.5))


def _mark(axes: Any, at: float, text: str) -> None:
    axes.axvline(at, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.text(at, 0.02, f" {text}", fontsize=8, color=_INK, transform=axes.get_xaxis_transform())


def _rows(axes: Any, runs: Sequence[Run]) -> None:
    axes.set_yticks(range(len(runs)), [run.task.subject.name for run in runs])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
