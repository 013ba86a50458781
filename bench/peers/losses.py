"""Where DualMap is behind, said as plainly as where it is ahead."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bench.peers.arena import DUALMAP
from bench.peers.outcome import Outcome
from bench.peers.verdicts import SHIPPING


class _Measure(NamedTuple):
    name: str
    value: Callable[[Outcome], float | None]
    form: str
    more_is_better: bool = False


_MEASURES = (
    _Measure("in time", lambda one: one.within_slo_share, "{:.1%}", more_is_better=True),
    _Measure("p50", lambda one: one.ttft_s[0], "{:.2f} s"),
    _Measure("p90", lambda one: one.ttft_s[1], "{:.2f} s"),
    _Measure("p99", lambda one: one.ttft_s[2], "{:.1f} s"),
    _Measure("cached", lambda one: one.cached_share, "{:.1%}", more_is_better=True),
    _Measure("load cv", lambda one: one.load_cv, "{:.2f}"),
    _Measure("router CPU per request", lambda one: one.router_cpu_ms, "{:.2f} ms"),
)


def losses(curves: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """At every rate that DualMap and a shipping peer ran: what the best of them does better."""
    lines = []
    for own in curves.get(DUALMAP, ()):
        others = [
            one for name in SHIPPING for one in curves.get(name, ()) if one.rate_req_s == own.rate_req_s
        ]
        found = [said for measure in _MEASURES if (said := _behind(measure, own, others)) is not None]
        if found:
            lines.append(f"at {own.rate_req_s:g}/s: " + "; ".join(found))
    return lines


def _behind(measure: _Measure, own: Outcome, others: Sequence[Outcome]) -> str | None:
    """What DualMap has and what the best other has, if that is better; None if it is not."""
    mine = measure.value(own)
    known = [(value, one.subject) for one in others if (value := measure.value(one)) is not None]
    if not known:
        return None
    best, subject = max(known) if measure.more_is_better else min(known)
    if mine is not None and (mine >= best if measure.more_is_better else mine <= best):
        return None
    shown = "never reached" if mine is None else measure.form.format(mine)
    return f"{measure.name} {shown}, {subject} {measure.form.format(best)}"
