"""A trial: load, faults beside it, and the verdict on what clients saw and what is left."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from dualmap_cli.load import FailedTry, RequestRecord

from . import faults
from .faults import Fault
from .load import Mix, asking
from .rest import Footprint, settle
from .world import World

ECHO_S = 6.0
"""How long after a fault its errors may still come: what waited for a lost part learns of it by a time-out."""


@dataclass(frozen=True)
class Planned:
    """A fault, when it begins and how long it is left."""

    at_s: float
    lasts_s: float
    fault: Fault


MIX = Mix()

Lane = Sequence[Planned]
"""Faults that come one after the other."""


@dataclass
class Happened:
    """A fault as it was; seconds since the trial began."""

    fault: Fault
    from_s: float
    to_s: float = float("inf")

    def __str__(self) -> str:
        return f"{self.from_s:5.1f}-{self.to_s:5.1f} s  {self.fault!s:34} {self.fault.promise}"

    def covers(self, record: RequestRecord) -> bool:
        """Whether a request was under way during this."""
        return record.sent_s < self.to_s + ECHO_S and record.sent_s + (record.e2e_s or 0.0) > self.from_s

    def explains(self, failed: FailedTry, router: str) -> bool:
        """Whether this is why a router had its client ask another."""
        in_time = self.from_s <= failed.at_s < self.to_s + ECHO_S
        return in_time and failed.error in self.fault.retried and self.fault.part in ("", router)


@dataclass
class Outcome:
    """What came of a trial."""

    records: list[RequestRecord]
    happened: list[Happened]
    routers: Mapping[str, str]
    """Their names by URL."""
    left: dict[str, object] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    cpu_share: float = 0.0
    said: dict[str, list[str]] = field(default_factory=dict)
    """What the parts' logs say of requests that went wrong, by request."""

    @property
    def lost(self) -> list[RequestRecord]:
        """Never answered: cut, or nothing within the client's time-out."""
        return [r for r in self.records if not r.finished or r.error in ("cut", "timeout", "empty")]

    @property
    def duplicated(self) -> list[RequestRecord]:
        """Answered more than once."""
        return [r for r in self.records if r.duplicate]

    @property
    def wrong(self) -> list[RequestRecord]:
        """Answered with another text."""
        return [r for r in self.records if r.error == "wrong_text"]

    @property
    def unexcused(self) -> list[tuple[str, RequestRecord]]:
        """Errors that a client saw and that no fault of that time explains."""
        found = []
        for record in self.records:
            for failed in record.failed_tries:
                if not any(one.explains(failed, self.routers[failed.target]) for one in self.happened):
                    found.append((f"retried {failed.error}", record))
            during = [one.fault for one in self.happened if one.covers(record)]
            visible = frozenset().union(*(fault.visible for fault in during))
            if record.error is not None and record.error not in visible:
                found.append((record.error, record))
        return found

    def lines(self) -> list[str]:
        """The trial in a few lines."""
        answered = sum(record.ok for record in self.records)
        errors = Counter(record.error for record in self.records if record.error is not None)
        retried = Counter(error for record in self.records for error in record.retried)
        continued = sum(record.ok and record.reason == "retry" for record in self.records)
        slowest_s = max((record.e2e_s or 0.0 for record in self.records), default=0.0)
        attained = sum(record.within_slo for record in self.records) / max(len(self.records), 1)
        return [
            *map(str, self.happened),
            f"sent {len(self.records)}  answered {answered}  lost {len(self.lost)}"
            f"  duplicated {len(self.duplicated)}  wrong {len(self.wrong)}  errors {dict(errors)}",
            f"asked again {dict(retried)}  resubmitted {continued}  in time {attained:.1%}"
            f"  slowest {slowest_s:.1f} s"
            f"  CPU {self.cpu_share:.0%}  left {self.left or 'nothing'}",
        ]

    def check(self) -> None:
        """Raise AssertionError for whatever must not be."""
        assert self.records
        assert not self.lost, (self.lost[:3], self.said)
        assert not self.duplicated, self.duplicated[:3]
        assert not self.wrong, (self.wrong[:3], self.said)
        unexcused = Counter(what for what, _ in self.unexcused)
        assert not unexcused, (unexcused, self.unexcused[:3], self.said)
        assert not self.doubled, self.doubled
        assert not self.left, self.left


def summary(outcomes: Sequence[Outcome]) -> str:
    """All trials together in a line or two."""
    records = [record for outcome in outcomes for record in outcome.records]
    kinds = Counter(type(one.fault).__name__ for outcome in outcomes for one in outcome.happened)

    def total(name: str) -> int:
        return sum(len(getattr(outcome, name)) for outcome in outcomes)

    return (
        f"{len(outcomes)} schedules, {sum(kinds.values())} faults of {len(kinds)} kinds, {len(records)} requests: "
        f"lost {total('lost')}, duplicated {total('duplicated')}, wrong {total('wrong')}, "
        f"unexcused errors {total('unexcused')}, not back to zero {sum(bool(o.left) for o in outcomes)}"
    )


async def run_trial(
    world: World, lanes: Sequence[Lane], seconds: float, seed: int = 0, mix: Mix = MIX
) -> Outcome:
    """Put a load on a whole world while faults come and go; returns when all is healed and settled."""
    before = Footprint.of(world)
    psutil.cpu_percent()
    happened: list[Happened] = []
    workloads = mix.workloads(seconds, seed)
    # One clock for faults and requests, or an error of the first moment seems to come before its fault.
    started_s = time.perf_counter()
    async with asking(world, workloads, started_s) as load, asyncio.TaskGroup() as running:
        for lane in lanes:
            running.create_task(_run_lane(world, lane, happened, started_s))
    records = await load
    routers = {world.router_url(name): name for name in world.routers}
    outcome = Outcome(records, sorted(happened, key=lambda one: one.from_s), routers)
    outcome.cpu_share = psutil.cpu_percent() / 100
    wrong = [*outcome.lost, *outcome.wrong, *(record for _, record in outcome.unexcused)]
    outcome.said = {record.request_id: world.logged(record.request_id) for record in wrong}
    await world.whole()
    outcome.left = await settle(world, before)
    outcome.doubled = await _doubled(world, outcome)
    return outcome


async def _run_lane(world: World, lane: Lane, happened: list[Happened], started_s: float) -> None:
    for planned in lane:
        await asyncio.sleep(started_s + planned.at_s - time.perf_counter())
        one = Happened(planned.fault, time.perf_counter() - started_s)
        happened.append(one)
        try:
            await planned.fault.apply(world)
            await asyncio.sleep(planned.lasts_s)
        finally:
            await planned.fault.heal(world)
        one.to_s = time.perf_counter() - started_s


async def _doubled(world: World, outcome: Outcome) -> list[str]:
    """Requests that engines answered in full twice although nothing was lost on their way."""
    finished: Counter[str] = Counter()
    for worker in world.workers:
        with contextlib.suppress(KeyError):
            for request_id, row in (await world.engine_stats(worker, requests=True))["requests"].items():
                finished[request_id] += row["finished"]
    calm = (r for r in outcome.records if not any(one.covers(r) for one in outcome.happened))
    return [record.request_id for record in calm if finished[record.request_id] > 1]


def make_lanes(seed: int, seconds: float, counts: Mapping[str, int]) -> list[Lane]:
    """Random faults by a seed: a lane each for instances, routers, the store, rebalancers and clients.

    `counts` says how many there are of each kind of part.
    """
    kinds = (
        faults.INSTANCE_FAULTS,
        faults.ROUTER_FAULTS,
        faults.STORE_FAULTS,
        faults.REBALANCER_FAULTS,
        faults.CLIENT_FAULTS,
    )
    return [_make_lane(random.Random(f"{seed}/{i}"), kind, seconds, counts) for i, kind in enumerate(kinds)]


def _make_lane(
    rng: random.Random, kinds: Sequence[type[Fault]], seconds: float, counts: Mapping[str, int]
) -> Lane:
    lane: list[Planned] = []
    at_s = rng.uniform(1.0, 8.0)
    while at_s < seconds - 4.0:
        kind = rng.choice(kinds)
        fault = kind(f"{kind.of}-{rng.randint(1, counts[kind.of])}" if kind.of else "")
        if isinstance(fault, faults.Partition):
            fault.resets = rng.random() < 0.5
        lasts_s = rng.uniform(*kind.lasts_s)
        lane.append(Planned(at_s, lasts_s, fault))
        at_s += lasts_s + rng.uniform(3.0, 10.0)
    return lane
