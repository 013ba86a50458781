"""Goodput and fleets: which trials, and what they gave."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bench.peers.arena import DUALMAP
from bench.peers.config import FIRST_RATE, FLEET_RATE, FLEET_SUBJECTS, LOUD_FLEETS, RATES, SLO_S, Effort
from bench.peers.outcome import Outcome
from bench.peers.run import Trial
from bench.peers.schedule import Runs
from bench.peers.settings import COMPARED
from bench.peers.settings import RATES as SETTINGS_RATES

_CHANGING = 4
"""Routers of the fleet of which half go and come back."""


class Goodput(NamedTuple):
    """A workload's runs, by subject, each at rising rates."""

    workload: str
    curves: dict[str, list[Outcome]]


def trial(subject: str, workload: str, rate_req_s: float, effort: Effort, trace: str | None) -> Trial:
    """A subject at a rate."""
    return Trial(
        subject=subject,
        workload=workload,
        rate_req_s=rate_req_s,
        count=effort.requests(workload, rate_req_s),
        trace=trace if workload == "conversation" else None,
        time_scale=effort.time_scale,
        slo_s=SLO_S,
    )


async def goodput(
    workload: str, subjects: Sequence[str], effort: Effort, trace: str | None, runs: Runs
) -> Goodput:
    """Every subject's curve; subjects run side by side as far as there is room."""

    async def curve(subject: str) -> list[Outcome]:
        rates = _rates(subject, workload)[: effort.num_rates]
        return await runs.curve(
            lambda rate: trial(subject, workload, rate, effort, trace), rates, effort.search
        )

    curves = await asyncio.gather(*(curve(subject) for subject in subjects))
    return Goodput(workload, dict(zip(subjects, curves, strict=True)))


def _rates(subject: str, workload: str) -> list[float]:
    first = FIRST_RATE.get((workload, subject), 0.0)
    return [rate for rate in RATES[workload] if rate >= first]


async def try_settings(effort: Effort, trace: str | None, runs: Runs, subjects: Sequence[str]) -> None:
    """Run every setting that the page has a row for, once on each workload."""
    await asyncio.gather(
        *(
            runs.run(trial(subject, workload, rate, effort, trace))
            for workload, rate in SETTINGS_RATES.items()
            for subject in subjects
        )
    )


def tried_settings(effort: Effort, trace: str | None, runs: Runs) -> dict[str, list[Outcome | None]]:
    """What came of each setting, in the order of the workloads; without running anything."""
    found = {
        subject: [
            runs.kept(trial(subject, workload, rate, effort, trace))
            for workload, rate in SETTINGS_RATES.items()
        ]
        for subject in COMPARED
    }
    return {subject: outcomes for subject, outcomes in found.items() if any(outcomes)}


async def fleets(
    subjects: Sequence[str], effort: Effort, trace: str | None, runs: Runs
) -> dict[str, list[Outcome]]:
    """More and more routers in front of the same engines, and for DualMap a fleet that changes under load.

    Subjects run side by side but for the loud ones, each one's fleets one after the other: several large ones at once
    fill the machine.
    """

    async def fleet(subject: str) -> list[Outcome]:
        base = trial(subject, "conversation", FLEET_RATE[subject], effort, trace)
        own = subject == DUALMAP
        trials = [
            msgspec.structs.replace(base, routers=number, seed=seed)
            for number in effort.fleets
            if own or number <= 4
            for seed in range(1, 1 + (effort.fleet_rounds if own else 1))
        ]
        if max(effort.fleets) >= _CHANGING:
            trials.append(msgspec.structs.replace(trials[0], routers=_CHANGING, changes=True))
        outcomes = [await runs.run(one) for one in trials]
        return [one for one in outcomes if one is not None]

    names = [name for name in FLEET_SUBJECTS if name in subjects]
    quiet = [name for name in names if name not in LOUD_FLEETS]
    found = dict(zip(quiet, await asyncio.gather(*map(fleet, quiet)), strict=True))
    for name in names:
        if name in LOUD_FLEETS:
            found[name] = await fleet(name)
    return found
