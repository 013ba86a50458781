"""The options of `dualmap simulate` as a plan; what does not hold up is an error that names the option."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import TypeVar, cast

import click

from dualmap.queue_order import ORDERS, OrderName
from dualmap.types import ChoiceRule, Slo
from dualmap_sim.engine.errors import EngineConfigError
from dualmap_sim.fleet.engines import model_profile
from dualmap_sim.fleet.setup import Change, ChangeKind, FleetSetup
from dualmap_sim.policies import POLICIES
from dualmap_sim.study.comparison import Case, subjects
from dualmap_sim.study.source import DEFAULT_REQUESTS, BuiltinSource, Source, TraceSource
from dualmap_sim.study.subject import DEFAULT_POLICY, NAMES, Subject, with_slo
from dualmap_sim.workloads import WORKLOADS, TraceError, WorkloadError
from dualmap_sim.workloads.trace_line import num_blocks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for, as it was typed."""

    traces: tuple[Path, ...]
    workload: str | None
    settings: tuple[str, ...]
    requests: int | None
    rate: str | None
    policy: str | None
    order: str | None
    instances: str
    kv_blocks: int
    slo_s: str
    slo_per_1k_s: float
    model: str
    routers: int
    changes: tuple[str, ...]
    adapters: tuple[str, ...]
    noise: float
    sync_s: float
    seed: int
    seeds: int | None
    preempt: bool | None
    age_bound_s: float
    aged_share: float
    tenant_fairness: bool
    lambda_own: float
    escape_at: float
    share: float
    capacity: bool
    compare: bool
    jobs: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: capacities when `rates` is empty, runs at these rates otherwise."""

    cases: tuple[tuple[Case, tuple[Subject, ...]], ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    share: float
    jobs: int


def make_plan(options: Options) -> Plan:
    """Check the options and put them together; a click.BadParameter or UsageError where they do not hold up."""
    capacity = options.capacity or (options.compare and options.rate is None)
    if options.capacity and options.rate is not None:
        raise click.UsageError("--capacity searches the rate: leave --rate out")
    names = _policies(options)
    order = cast(OrderName | None, _one_of("--order", options.order, ORDERS) if options.order else None)
    sources = _sources(options)
    sizes = _whole_numbers("--instances", options.instances)
    slos = [Slo(base, options.slo_per_1k_s) for base in _numbers("--slo-s", options.slo_s)]
    fleet = _fleet(options)
    cases = [
        Case(source, with_slo(replace(fleet, num_instances=size), slo))
        for source, size, slo in product(sources, sizes, slos)
    ]
    if len(cases) > 1 and not options.compare:
        raise click.UsageError("several workloads, sizes or SLOs at once are a comparison: add --compare")
    _check_indexes("--change", (change.index for change in fleet.changes), sizes)
    _check_indexes("--adapter", chain.from_iterable(served for _, served in fleet.adapters), sizes)
    num_seeds = options.seeds or (3 if capacity else 1)
    rates = () if capacity else _rates(options, sources, sizes[0])
    for source in sources:
        _check_room(source, options.kv_blocks)
    return Plan(
        tuple((case, tuple(subjects(case, names, order, options.preempt))) for case in cases),
        rates,
        tuple(range(options.seed, options.seed + num_seeds)),
        options.share,
        options.jobs,
    )


def _fleet(options: Options) -> FleetSetup:
    base = FleetSetup()
    setup = replace(
        base,
        kv_blocks=options.kv_blocks,
        choice=ChoiceRule(lambda_own=options.lambda_own, escape_at=options.escape_at),
        order=replace(
            base.order,
            age_bound_s=options.age_bound_s,
            aged_share=options.aged_share,
            tenant_fairness=options.tenant_fairness,
        ),
        preempt=replace(base.preempt, enabled=options.preempt is not False),
        model=options.model,
        num_routers=options.routers,
        changes=tuple(_change(given) for given in options.changes),
        adapters=_adapters(options.adapters),
        noise=options.noise,
        sync_s=options.sync_s,
    )
    try:
        model_profile(setup)
    except EngineConfigError as error:
        raise click.BadParameter(f"serial, or a profile: {error}", param_hint="--model") from error
    return setup


def _policies(options: Options) -> list[str]:
    if options.policy is None:
        return [*NAMES] if options.compare else [DEFAULT_POLICY]
    if options.policy == "all":
        return [*POLICIES]
    names = [name.strip() for name in options.policy.split(",")]
    return list(dict.fromkeys(_one_of("--policy", name, NAMES) for name in names))


def _sources(options: Options) -> list[Source]:
    if options.traces and (options.workload or options.settings):
        raise click.UsageError("--trace excludes --workload and --set")
    if options.traces:
        return [TraceSource(str(path), options.requests) for path in options.traces]
    if options.workload is None:
        raise click.UsageError(f"say what to simulate: --trace FILE, or --workload {'|'.join(WORKLOADS)}")
    names = [_one_of("--workload", name.strip(), WORKLOADS) for name in options.workload.split(",")]
    settings = tuple(map(_setting, options.settings))
    return [BuiltinSource(name, settings, options.requests or DEFAULT_REQUESTS) for name in names]


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise click.BadParameter(f"it takes NAME=NUMBER, not {text!r}", param_hint="--set") from error


def _rates(options: Options, sources: Sequence[Source], num_instances: int) -> tuple[float, ...]:
    if options.rate is not None:
        return tuple(_numbers("--rate", options.rate))
    own = None if len(sources) > 1 else _reading(sources[0], sources[0].own_rate_req_s)
    return (own or num_instances / 2,)


_CHANGE = re.compile(r"(lose|drain|join):(\d+)@(\d+(?:\.\d+)?)")


def _change(given: str) -> Change:
    found = _CHANGE.fullmatch(given)
    if found is None:
        raise click.BadParameter(f"{given!r} is not like lose:0@600", param_hint="--change")
    kind, index, at_s = found.groups()
    return Change(float(at_s), int(index), cast(ChangeKind, kind))


_ADAPTER = re.compile(r"(.+)=(\d+(?:,\d+)*)")


def _adapters(given: Sequence[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    served: dict[str, tuple[int, ...]] = {}
    for text in given:
        found = _ADAPTER.fullmatch(text)
        if found is None:
            raise click.BadParameter(f"{text!r} is not like NAME=0,1", param_hint="--adapter")
        served[found[1]] = tuple(int(index) for index in found[2].split(","))
    return tuple(served.items())


def _check_indexes(option: str, indexes: Iterable[int], sizes: Sequence[int]) -> None:
    for index in indexes:
        if index >= min(sizes):
            raise click.BadParameter(
                f"there is no instance {index} of {min(sizes)}; they count from 0", param_hint=option
            )


def _check_room(source: Source, kv_blocks: int) -> None:
    arrivals = _reading(source, lambda: source.arrivals(1.0, 0))
    need = max((num_blocks(arrival.input_tokens) for arrival in arrivals), default=0)
    if need > kv_blocks:
        raise click.BadParameter(
            f"the longest prompt of {source.name} needs {need} blocks", param_hint="--kv-blocks"
        )


def _reading(source: Source, read: Callable[[], T]) -> T:
    try:
        return read()
    except TraceError as error:
        raise click.BadParameter(str(error), param_hint="--trace") from error
    except WorkloadError as error:
        hint = "--trace" if isinstance(source, TraceSource) else "--set"
        raise click.BadParameter(str(error), param_hint=hint) from error


def _numbers(option: str, text: str) -> list[float]:
    """Numbers above 0 between commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"it takes numbers between commas, not {text!r}", param_hint=option
        ) from error
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise click.BadParameter(f"{value:g} is not above 0", param_hint=option)
    return list(dict.fromkeys(values))


def _whole_numbers(option: str, text: str) -> list[int]:
    values = _numbers(option, text)
    for value in values:
        if value != int(value):
            raise click.BadParameter(f"{value:g} is not a whole number", param_hint=option)
    return [int(value) for value in values]


def _one_of(option: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    if name not in names:
        raise click.BadParameter(f"{name!r} is not one of {', '.join(names)}", param_hint=option)
    return name
