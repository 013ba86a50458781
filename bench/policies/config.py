"""What is measured: the tables of docs/results.md, their workloads and their subjects."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dualmap.types import ChoiceRule, Slo
from dualmap_sim.fleet.result import FIXED_SLO, SCALED_SLO
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import POLICIES
from dualmap_sim.study.comparison import Case
from dualmap_sim.study.runs import RunTask
from dualmap_sim.study.source import BuiltinSource, Source, TraceSource
from dualmap_sim.study.subject import NAMES, Subject, make_subject, with_slo

AGENTS = "agents"
OTHERS = ("system-prompts", "documents", "unique", "chat", "bursts", "diurnal", "drift", "tenants")
"""Built-in workloads beside it."""
_FEW = ("dualmap", "mooncake", "lmetric", "llm-d", "least-loaded", "pool-late-last")
"""Ours, the best baselines, the best rule of a router in use, the yardstick and the bound."""
PLOTTED = (*_FEW, "dynamo", "sglang", "round-robin", "offline-order")
"""More lines than this nobody can tell apart."""
_QUICK = ("dualmap", "mooncake", "least-loaded")
_ROBUST = ("dualmap", "mooncake", "least-loaded")


@dataclass(frozen=True, slots=True)
class Part:
    """One table: subjects in cases; `plots` are drawn of its first cases."""

    key: str
    title: str
    about: str
    cases: Sequence[tuple[Case, Sequence[Subject]]]
    num_plotted: int = 0


@dataclass(frozen=True, slots=True)
class ClassesPart:
    """One table: what becomes of short and long prompts, of every subject at the same rate."""

    key: str
    title: str
    about: str
    runs: Sequence[RunTask]


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    parts: Sequence[Part | ClassesPart]
    seeds: tuple[int, ...]
    tolerance: float
    share: float = 0.9


@dataclass(frozen=True, slots=True)
class Scope:
    """How much of it to measure."""

    quick: bool = False
    seeds: int = 3
    parts: tuple[str, ...] = ()
    """Their keys; all when empty."""
    workloads: tuple[str, ...] = ()
    """By name, the traces' being their files'; all when empty."""
    policies: tuple[str, ...] = ()
    """And bounds, in the tables of all; all when empty."""
    plots: bool = True

    @property
    def whole(self) -> bool:
        """Whether its tables are those of docs/results.md, and not parts of them."""
        return self == Scope(parts=self.parts, plots=self.plots)


def make_config(traces: Sequence[str], scope: Scope) -> Config:
    """The full one, a part of it, or a small one that takes minutes."""
    quick = scope.quick
    count = 1_000 if quick else 12_000
    files = [TraceSource(trace, count if quick else None) for trace in traces]
    main: list[Source] = [files[0], *(() if quick else (BuiltinSource(AGENTS, count=count),))]
    others: list[Source] = [*files[1:], *(BuiltinSource(name, count=count) for name in OTHERS)]

    def chosen(sources: list[Source]) -> list[Source]:
        return [source for source in sources if not scope.workloads or source.name in scope.workloads]

    def of(names: Sequence[str]) -> list[str]:
        return [name for name in names if not scope.policies or name in scope.policies]

    pool = FleetSetup()
    names, few = of(_QUICK if quick else NAMES), of(_QUICK if quick else _FEW)
    parts: list[Part | ClassesPart] = [
        _grid("fixed", "Capacity under a fixed SLO", chosen(main), FIXED_SLO, pool, names, int(scope.plots)),
    ]
    if not quick:
        large = replace(pool, num_instances=16)
        parts += [
            _grid("others", "Other workloads", chosen(others), FIXED_SLO, pool, few),
            _grid(
                "scaled",
                "Capacity under an SLO that grows with the prompt",
                chosen(main),
                SCALED_SLO,
                pool,
                few,
            ),
            _grid("sixteen", "Capacity of 16 instances", chosen(main), FIXED_SLO, large, few),
        ]
    parts += [
        _robustness(files[0], _ROBUST[:1] if quick else _ROBUST),
        _part("paper", "The paper's parts, one at a time", _PAPER, files[0], paper_steps(pool)),
        _part("ours", "The default policy's parts, one at a time", _OURS, files[0], our_steps(pool)),
    ]
    if not quick:
        parts.append(_classes(zip(main, (4.2, 12.0), strict=True), pool))
    if scope.parts:
        parts = [part for part in parts if part.key in scope.parts]
    seeds = (0,) if quick else tuple(range(scope.seeds))
    return Config(parts, seeds, 0.05 if quick else 0.01)


_PAPER = "Each row adds a part to the one above. The key is one chunk until it adapts."
_OURS = "Each row adds a part to the one above; the first has the score of the default policy in its pair, and FCFS."


def paper_steps(pool: FleetSetup) -> list[Subject]:
    """The paper's ablation, by switches of the set-up."""
    minimum = make_subject(pool, "dualmap", "longest-prefix", preempt=False).setup
    minimum = replace(
        minimum, choice=ChoiceRule(lambda_own=0.0, escape_at=math.inf), rebalance=None, adaptive_key=False
    )
    paper = make_subject(pool, "paper").setup
    fixed_key = replace(paper, adaptive_key=False)
    return [
        Subject("min TTFT of the pair", "longest-prefix", minimum),
        Subject("+ SLO-aware switch", "longest-prefix", replace(fixed_key, rebalance=None)),
        Subject("+ rebalancing", "longest-prefix", fixed_key),
        Subject("+ adaptive key (paper)", "longest-prefix", paper),
    ]


def our_steps(pool: FleetSetup) -> list[Subject]:
    """The default policy's ablation."""
    whole = make_subject(pool, "dualmap").setup
    escapes = replace(whole, rebalance=None)
    preempts = replace(escapes, choice=replace(whole.choice, escape_at=math.inf))
    late_last = replace(preempts, preempt=replace(whole.preempt, enabled=False))
    fcfs = replace(late_last, order=replace(whole.order, order="fcfs"))
    return [
        Subject("score in the pair, FCFS", "fcfs", fcfs),
        Subject("+ late-last", "late-last", late_last),
        Subject("+ preemption", "late-last", preempts),
        Subject("+ escape", "late-last", escapes),
        Subject("+ rebalancing (dualmap)", "late-last", whole),
    ]


def _grid(
    key: str,
    title: str,
    sources: Sequence[Source],
    slo: Slo,
    pool: FleetSetup,
    names: Sequence[str],
    plots: int = 0,
) -> Part:
    base = with_slo(pool, slo)
    members = [make_subject(base, name) for name in names]
    about = "Requests/s, each policy with its published order; bounds below the policies."
    return Part(key, title, about, [(Case(source, base), members) for source in sources], plots)


def _robustness(source: Source, names: Sequence[str]) -> Part:
    pool = FleetSetup()
    fleets = {
        "as it is": pool,
        "estimates off by up to 30 %": replace(pool, noise=0.3),
        "by up to 60 %": replace(pool, noise=0.6),
        "4 routers, books 1 s old": replace(pool, num_routers=4, sync_s=1.0),
        "16 routers, books 1 s old": replace(pool, num_routers=16, sync_s=1.0),
    }
    members = [
        replace(make_subject(base, name), name=f"{name}, {what}")
        for name in names
        for what, base in fleets.items()
    ]
    assert set(names) <= set(POLICIES)
    about = "Routers keep books of their own and see the others' bookings late; estimates err by a uniform factor."
    return Part("robust", "Noise and stale views", about, [(Case(source, pool), members)])


def _classes(at: Iterable[tuple[Source, float]], pool: FleetSetup) -> ClassesPart:
    ours = make_subject(pool, "dualmap")
    fcfs = replace(make_subject(pool, "dualmap", "fcfs", preempt=False), name="dualmap, FCFS")
    members = [ours, fcfs, make_subject(pool, "least-loaded"), make_subject(pool, "mooncake")]
    about = (
        "All at the same rate, near the best baseline's capacity. Times are TTFT over the seconds that the prompt "
        "takes cold and alone."
    )
    runs = [RunTask(member, source, rate) for source, rate in at for member in members]
    return ClassesPart("classes", "Short and long prompts", about, runs)


def _part(key: str, title: str, about: str, source: Source, members: Sequence[Subject]) -> Part:
    return Part(key, title, about, [(Case(source, FleetSetup()), members)])
