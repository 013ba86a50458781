import random
from pathlib import Path

import msgspec
import pytest

from dualmap.types import Slo
from dualmap_sim.fleet.capacity import Capacity, find_capacity, most_late, run_fleet
from dualmap_sim.fleet.fleet import Fleet
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.fleet.result import Measures, RunResult, summarize
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.policies import make_policy
from dualmap_sim.study.capacities import CapacityTask, find_all
from dualmap_sim.study.runs import RunTask, run_all, run_once
from dualmap_sim.study.source import BuiltinSource, TraceSource
from dualmap_sim.study.subject import NAMES, make_subject
from dualmap_sim.workloads.arrival import Arrival

SMALL = FleetSetup(num_instances=4)
AGENTS = BuiltinSource("agents", count=200)


def decisions(seed: int) -> list[tuple[object, ...]]:
    subject = make_subject(
        FleetSetup(num_instances=4, num_routers=2, noise=0.3, sync_s=1.0, seed=seed), "dualmap"
    )
    fleet = Fleet(subject.setup, make_policy(subject.setup))
    fleet.run(AGENTS.arrivals(5.0, seed))
    return [
        (flight.arrival.request_id, flight.choice, flight.moves, flight.preemptions, flight.first_token_s)
        for flight in fleet.flights
    ]


def test_ten_runs_of_a_seed_are_one_trace_of_decisions() -> None:
    first = decisions(3)
    assert all(decisions(3) == first for _ in range(9))
    assert decisions(4) != first


def test_the_number_of_processes_changes_nothing() -> None:
    tasks = [
        RunTask(make_subject(SMALL, name), AGENTS, 4.0, 1) for name in ("dualmap", "power-of-two", "preble")
    ]
    assert run_all(tasks, jobs=1) == run_all(tasks, jobs=2)
    searches = [
        CapacityTask(task.subject, BuiltinSource("documents", count=120), seeds=(0, 1), tolerance=0.2)
        for task in tasks[:2]
    ]
    assert find_all(searches, jobs=1) == find_all(searches, jobs=2)


@pytest.mark.parametrize("name", NAMES)
def test_everything_runs_by_name(name: str) -> None:
    result = run_once(RunTask(make_subject(SMALL, name), BuiltinSource("tenants", count=80), 3.0))
    assert result is not None
    assert result.num_requests == 80
    assert sum(group.num_requests for group in result.by_length) == 80
    assert sum(group.num_requests for group in result.by_tenant) == 80
    assert msgspec.convert(msgspec.to_builtins(result), RunResult) == result


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("rate", [3.0, 8.0])
def test_an_early_end_never_changes_the_answer(rate: float, share: float) -> None:
    for name in ("dualmap", "least-loaded", "offline-order"):
        task = RunTask(make_subject(SMALL, name), BuiltinSource("documents", count=200), rate)
        whole = run_once(task)
        assert whole is not None
        early = run_once(task, share)
        late = whole.num_requests - round(whole.within_slo_share * whole.num_requests)
        allowed = most_late(task.source.arrivals(rate, 0), share)
        assert allowed is not None
        assert (early is None) == (late > allowed)
        assert early in (None, whole)


def test_who_never_starts_is_late_and_ends_a_run_early() -> None:
    subject = make_subject(FleetSetup(num_instances=1, kv_blocks=4), "least-loaded")
    arrivals = [Arrival(float(at), f"r{at}", 4096, 1, tuple(range(at * 8, at * 8 + 8))) for at in range(100)]
    fleet = Fleet(subject.setup, make_policy(subject.setup))
    assert run_fleet(fleet, arrivals, 0.9) is None
    # Ten late ones are allowed, the eleventh is late 5 s after it came.
    assert fleet.loop.now_s == pytest.approx(16.0)


def test_a_result_holds_requests_against_both_objectives() -> None:
    def flight(at_s: float, tokens: int, ttft_s: float | None, chunks: tuple[int, ...]) -> Flight:
        arrival = Arrival(at_s, f"r{at_s}", tokens, 1, chunks, tenant=f"t{tokens > 9000}")
        return Flight(arrival, 5.0, 0, first_token_s=None if ttft_s is None else at_s + ttft_s)

    flights = [
        flight(0.0, 1024, 3.0, (1, 2)),
        flight(1.0, 1024, 2.0, (1, 2)),
        flight(2.0, 10240, 6.0, (1, *range(10, 29))),
        flight(3.0, 10240, None, ()),
    ]
    measures = Measures(Slo(5.0), Slo(2.0, 0.5), lambda tokens: tokens / 1024)
    result = summarize(flights, [1.0, 3.0], measures)
    assert (result.within_slo_share, result.within_fixed_share) == (0.5, 0.5)
    assert result.within_scaled_share == 0.5  # 2.5 s and 7.1 s
    assert result.unserved == 1
    assert result.goodput_req_s == pytest.approx(2 / 3)
    assert result.ideal_hit_share == pytest.approx((512 + 512) / 22528)
    assert result.load_cv == 0.5
    assert [(group.name, group.num_requests, group.slowdown.p50) for group in result.by_length] == [
        ("under 2k", 2, 3.0), ("2k to 8k", 0, 0.0), ("8k to 32k", 2, 0.6), ("over 32k", 0, 0.0),
    ]  # fmt: skip
    assert [(group.name, group.within_slo_share) for group in result.by_tenant] == [
        ("tFalse", 1.0),
        ("tTrue", 0.0),
    ]


def test_a_trace_is_scaled_and_drawn_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rng = random.Random(0)
    lines = [
        {"timestamp": at * 3000, "input_length": 1024, "output_length": 5, "hash_ids": [0, rng.randrange(9)]}
        for at in range(50)
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    source = TraceSource(str(path), 40)
    same, other = source.arrivals(4.0, 0), source.arrivals(4.0, 1)
    assert len(same) == len(other) == 40
    assert same[-1].at_s - same[0].at_s == pytest.approx(10.0)
    assert [arrival.chunks for arrival in same] != [arrival.chunks for arrival in other]
    assert source.own_rate_req_s() == pytest.approx(40 / 117)


def test_a_workload_that_is_one_burst_has_no_endless_search() -> None:
    result = run_once(RunTask(make_subject(SMALL, "dualmap"), BuiltinSource("chat", count=5), 1.0))
    rate, best = find_capacity(lambda rate: result, 1.0)
    assert rate >= 100.0
    assert best is result
    assert Capacity((1.0, 2.0), None).ci[0] < 1.0
