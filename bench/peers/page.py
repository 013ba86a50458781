"""docs/benchmarks.md, its plots, and the table in the README."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.marked import put
from bench.peers.arena import DUALMAP, NUM_ENGINES
from bench.peers.bounds import Bounds
from bench.peers.capacity import capacity
from bench.peers.config import SLO_S, WORKLOADS, Effort
from bench.peers.goodput import Goodput
from bench.peers.launch_table import launch_table
from bench.peers.losses import losses
from bench.peers.outcome import Outcome
from bench.peers.schedule import shares
from bench.peers.tables import capacities_table, fleet_table, overhead_table, runs_table, settings_table
from bench.peers.verdicts import (
    best_settings,
    best_shipping,
    fleet_verdicts,
    goodput_verdicts,
    overhead_verdicts,
)
from bench.router.measures import Findings
from bench.router.report import Machine
from dualmap_sim.study.plots import curves_plot
from dualmap_sim.study.tables import markdown

_ROOT = Path(__file__).parents[2]


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    machine: Machine
    effort: Effort
    traced: bool
    goodput: dict[str, Goodput] = field(default_factory=dict)
    fleets: dict[str, list[Outcome]] = field(default_factory=dict)
    overhead: Findings | None = None
    bounds: dict[str, Bounds] = field(default_factory=dict)
    """By workload."""
    settings: dict[str, list[Outcome | None]] = field(default_factory=dict)
    """By subject, in the order of the workloads."""


def write(results: Results, out: Path) -> None:
    """Write the page and its plots under `out`; in docs/ the README's table too."""
    out.mkdir(parents=True, exist_ok=True)
    plots = [_plot(found, out) for found in results.goodput.values()]
    (out / "benchmarks.md").write_text(_page(results, plots), encoding="utf-8")
    if out.resolve() == _ROOT / "docs":
        put(_ROOT / "README.md", "bench-peers", _short(results))


def _plot(found: Goodput, out: Path) -> str:
    curves = {
        name: [(one.rate_req_s, one.within_slo_share) for one in outcomes]
        for name, outcomes in found.curves.items()
        if outcomes
    }
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    name = f"benchmarks-{found.workload}.png"
    (folder / name).write_bytes(curves_plot(f"In time, {found.workload}, live", curves, 0.9))
    return f"![share within the objective against the rate, {found.workload}](pictures/{name})"


def _page(results: Results, plots: Sequence[str]) -> str:
    parts = ["# DualMap beside other routers", _head(results), "## In short", _short(results)]
    parts += ["\n".join(f"- {line}" for line in _verdicts(results))]
    parts += ["## Who is compared, and how each is started", _ABOUT_PEERS, launch_table()]
    if results.settings:
        parts += ["### What else was tried", _about_settings(results.settings)]
        parts += [markdown(settings_table(results.settings))]
    for (workload, found), plot in zip(results.goodput.items(), plots, strict=True):
        parts += [f"## {_TITLES[workload]}", _about(workload, results), plot]
        parts += [markdown(runs_table([one for curve in found.curves.values() for one in curve]))]
        if workload in results.bounds:
            parts += [_about_bounds(results.bounds[workload], found)]
        behind = losses(found.curves)
        if behind:
            parts += [
                "Where DualMap is behind the best shipping peer:",
                "\n".join(f"- {line}" for line in behind),
            ]
    if results.fleets:
        parts += ["## Fleets", _ABOUT_FLEETS]
        parts += [markdown(fleet_table([one for curve in results.fleets.values() for one in curve]))]
    if results.overhead is not None:
        parts += ["## What a router costs", _ABOUT_OVERHEAD, overhead_table(results.overhead)]
        parts += ["\n".join(_overhead_doubts(results.overhead))]
    parts += ["## How to read it", _READING]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Results) -> str:
    machine, effort = results.machine, results.effort
    trace = "" if results.traced else " No trace was given: its place took generated requests like its."
    return (
        f"Made by `make bench-peers TRACE=conversation.jsonl`; edit bench/peers instead.{trace}\n\n"
        f"{machine.date[:10]}, {machine.cpu}, {machine.cores} cores that engines, routers, workers and client share; "
        f"load {machine.load_before:.1f} before; Linux {machine.kernel}, Python {machine.python}. "
        f"{effort.count:,} requests a run of the trace, {effort.agents_s:g} model seconds of agents; "
        f"{effort.time_scale:g} model seconds in a second, up to {effort.jobs} runs side by side."
    )


def _doubts(results: Results) -> str:
    outcomes = [one for found in results.goodput.values() for curve in found.curves.values() for one in curve]
    outcomes += [one for curve in results.fleets.values() for one in curve]
    doubtful = sum(one.doubt is not None for one in outcomes)
    if not doubtful:
        return ""
    verb = "is" if doubtful == 1 else "are"
    return (
        f"\n\n**{doubtful} of {len(outcomes)} runs {verb} doubtful** (marked `!`): other work on the machine made the "
        "client late or filled the cores. Their figures are provisional, everybody's."
    )


def _overhead_doubts(findings: Findings) -> list[str]:
    """Failures one by one; a busy machine, which is in doubt window by window, in one line."""
    doubts = list(dict.fromkeys(findings.doubts))
    failures = [f"- {doubt}" for doubt in doubts if "failed" in doubt]
    num_busy = len(doubts) - len(failures)
    if not num_busy:
        return failures
    busy = f"- {num_busy} windows are in doubt: the client was late or the cores were full. Compare along a row only."
    return [*failures, busy]


def _short(results: Results) -> str:
    curves: dict[str, Mapping[str, Sequence[Outcome]]] = {
        workload: results.goodput[workload].curves for workload in WORKLOADS if workload in results.goodput
    }
    if not curves:
        return ""
    return markdown(capacities_table(curves, results.overhead)) + _doubts(results)


def _verdicts(results: Results) -> list[str]:
    verdicts = [
        verdict
        for workload, found in results.goodput.items()
        for verdict in goodput_verdicts(workload, found.curves)
    ]
    verdicts += fleet_verdicts(results.fleets.get(DUALMAP, ()))
    if results.overhead is not None:
        verdicts += overhead_verdicts(results.overhead)
    return [str(verdict) for verdict in verdicts]


def _about(workload: str, results: Results) -> str:
    curves = results.goodput[workload].curves
    own, mark = capacity(shares(curves.get(DUALMAP, ())))
    said = "" if own is None else f" DualMap holds 90 % up to {mark}{own:.1f} requests/s."
    return _ABOUT[workload] + said


def _about_settings(settings: Mapping[str, Sequence[Outcome | None]]) -> str:
    text = (
        "Every setting once, at one rate of each workload (`ARGS='--parts settings'`, bench/peers/settings.py); a run "
        "differs from the next by two points or so."
    )
    best = best_settings(settings)
    return f"{text} Best in the sum of both: {', '.join(best)}." if best else text


def _about_bounds(bounds: Bounds, found: Goodput) -> str:
    offline, fluid = bounds
    text = (
        f"What could be had at most of these requests (`bench/peers/bounds.py`): {offline:.2f}/s by an order that "
        "knows what each prefill will cost, on one engine as fast as all with all their cache, which starves whoever "
        f"cannot be in time; more than {fluid:.2f}/s by nobody, since then the cheapest nine in ten are more work than "
        "the engines do."
    )
    best = best_shipping(found.curves)
    value = capacity(shares(found.curves[best]))[0] if best is not None else None
    return text if value is None else f"{text} Twice the best shipping peer's capacity is {2 * value:.2f}/s."


_TITLES = {"conversation": "Goodput: conversation trace", "agents": "Goodput: tool agents"}
_ABOUT = {
    "conversation": (
        "The trace's first requests, its gaps stretched to the rate; everybody gets the same requests at the same "
        "times. A subject that has fewer than 55 % in time is not run at higher rates."
    ),
    "agents": (
        "Tool agents (`dualmap load --list-workloads`): a few hot tool prompts before short tasks, and sessions over "
        "documents; made anew at each rate, the same for everybody."
    ),
}
_ABOUT_PEERS = (
    "Defaults are as each ships; `tuned` is what its documentation offers that suits these engines. `URL` stands for "
    "an engine's, once for each of them."
)
_ABOUT_FLEETS = (
    "The same requests, spread by turns over more and more routers of a kind, at a rate near the capacity of one. "
    "Peers know of each other only what the engines tell them; DualMap's routers share Redis. In the last row two of "
    "four routers stop after a third of the run and come back after two; the client asks another one meanwhile. "
    "DualMap's fleets run more than once, to show how much a run differs from the next by chance; the verdicts above "
    "go by the means."
)
_ABOUT_OVERHEAD = (
    "Clients and clocks of `make bench-router`, in front of two engines that answer at once (streams: 50 tokens a "
    "second): user and system time of the router's process alone, less what it uses when idle; median (lowest to "
    "highest). DualMap's figure is its router's alone: its workers, one beside each engine, cost as well. What is "
    "added is over an engine without a router."
)
_READING = f"""\
- {NUM_ENGINES} simulated engines in one process speak vLLM's HTTP, metrics and KV events. They prefill 10,000 tokens a
  second, first come first served, and have room for 430,080 tokens each. DualMap has a worker in front of each, which
  orders and preempts; the others send straight to the engines.
- A request is in time when its first token comes within {SLO_S:g} s; what failed or never came is late. Capacity is
  where the line through a subject's runs falls through 90 %; `<` or `>=` where it lies outside the rates that were run.
- Cached is the share of the prompt tokens that no engine computed; what was computed twice counts against it.
- The oracle is a client that knows every queue and every cache and sends each request where it expects the smallest
  TTFT, first come first served: the bound of what a router without queues can do. nginx knows connections only.
- Engines stream 16 tokens a chunk (vLLM's `--stream-interval`) and have blocks of 64 tokens, for everybody, to spare
  the two cores.
- Runs are short: two to four minutes of model time. A queue that grows slowly is hardly seen, which favours whoever is
  just past capacity; `FULL=1` runs twice as many requests.
- What the engines do not answer: `/server_info`, `/model_info` and `/loads`, which are SGLang's; nor does vLLM.
- A run whose client sent late (p99 over 0.1 s), whose engines were over 0.5 s late, or whose cores were over 92 % busy
  is done once more, and marked `!` if that is no better."""
