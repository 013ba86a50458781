"""The parts of `make bench-peers` that run nothing: capacity, verdicts, launch lines, the page."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.peers.arena import DUALMAP, ORACLE
from bench.peers.bounds import Bounds, find_bounds
from bench.peers.capacity import capacity, middle
from bench.peers.config import QUICK
from bench.peers.goodput import Goodput
from bench.peers.launch_table import launch_line, launch_table
from bench.peers.losses import losses
from bench.peers.outcome import Outcome, cached_share, spread, ttft_percentiles, within_share
from bench.peers.page import Results, write
from bench.peers.peers import PEERS
from bench.peers.settings import COMPARED, SETTINGS, peer_of
from bench.peers.verdicts import (
    Verdict,
    best_settings,
    best_shipping,
    fleet_verdicts,
    goodput_verdicts,
    overhead_verdicts,
)
from bench.peers.workload import Source
from bench.router.measures import Figure, Findings
from bench.router.report import Machine
from bench.router.subjects import ROUTER
from dualmap_cli.load import RequestRecord


def record(ttft_s: float | None, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        target="t",
        due_s=0.0,
        sent_s=0.0,
        slo_s=5.0,
        finished=error is None,
        error=error,
        ttft_s=ttft_s,
    )


def outcome(
    subject: str, rate: float, within: float, *, routers: int = 1, lag_s: float = 0.0, cached: float = 0.1
) -> Outcome:
    return Outcome(
        subject=subject,
        workload="conversation",
        rate_req_s=rate,
        time_scale=2.0,
        routers=routers,
        requests=100,
        errors={},
        within_slo_share=within,
        ttft_s=[1.0, 4.0, None],
        cached_share=cached,
        load_cv=0.1,
        load_max=1.2,
        router_cpu_ms=1.0,
        lag_p99_s=lag_s,
        busy_share=0.5,
        own_share=0.2,
    )


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({}, (None, "")),
        ({4.0: 0.95, 6.0: 0.85}, (5.0, "")),
        ({4.0: 0.8}, (4.0, "<")),
        ({4.0: 0.95, 6.0: 0.92}, (6.0, ">=")),
        ({4.0: 0.95, 6.0: 0.9, 8.0: 0.7}, (6.0, "")),
    ],
)
def test_capacity(shares: dict[float, float], expected: tuple[float | None, str]) -> None:
    rate, mark = capacity(shares)
    assert mark == expected[1]
    assert rate == (None if expected[0] is None else pytest.approx(expected[0]))


def test_one_more_run_goes_where_it_says_most() -> None:
    assert middle({4.0: 0.95, 9.0: 0.5}) == 6.0
    assert middle({4.0: 0.95, 4.4: 0.5}) is None
    assert middle({4.0: 0.95}) is None
    assert middle({4.0: 0.7}) == pytest.approx(3.2)
    assert middle({}) is None


def test_who_got_no_answer_counts_as_late_and_slow() -> None:
    records = [record(1.0), record(2.0), record(6.0), record(None), record(3.0, "cut")]
    assert within_share(records) == pytest.approx(0.4)
    assert ttft_percentiles(records) == [6.0, None, None]
    assert ttft_percentiles([record(float(n)) for n in range(1, 101)]) == [50.0, 90.0, 99.0]


def test_shares_of_load_and_cache() -> None:
    assert spread([1.0, 1.0]) == (0.0, 1.0)
    assert spread([0.0, 2.0]) == (1.0, 2.0)
    assert spread([0.0, 0.0]) == (0.0, 1.0)
    assert cached_share(100, 75) == 0.25
    assert cached_share(0, 0) == 0.0


def test_a_run_that_measured_the_machine_is_doubted() -> None:
    assert outcome("smg", 1.0, 1.0).doubt is None
    assert "client late" in (outcome("smg", 1.0, 1.0, lag_s=0.2).doubt or "")
    slow = msgspec.structs.replace(outcome("smg", 1.0, 1.0), engine_lag_s=0.7)
    assert "engines late" in (slow.doubt or "")
    full = msgspec.structs.replace(outcome("smg", 1.0, 1.0), busy_share=0.97)
    assert "busy" in (full.doubt or "")


def test_verdicts_compare_with_the_best_shipping_peer() -> None:
    curves = {
        DUALMAP: [outcome(DUALMAP, 6.0, 0.95), outcome(DUALMAP, 8.0, 0.85)],
        ORACLE: [outcome(ORACLE, 4.0, 0.95), outcome(ORACLE, 6.0, 0.85)],
        "smg": [outcome("smg", 2.0, 0.95), outcome("smg", 4.0, 0.85)],
        "sglang-router tuned": [outcome("sglang-router tuned", 3.0, 0.7)],
        "nginx": [outcome("nginx", 9.0, 1.0)],
    }
    # Both 3.0: a name has to be chosen, whichever.
    assert best_shipping(curves) in ("sglang-router tuned", "smg")
    peers, oracle = goodput_verdicts("conversation", curves)
    assert peers.measured == pytest.approx(7.0 / 3.0)
    assert oracle.measured == pytest.approx(7.0 / 5.0)
    assert goodput_verdicts("agents", {})[0].measured is None


def test_the_best_settings_are_those_of_the_highest_sum_that_were_run_on_all() -> None:
    settings = {
        "smg": [outcome("smg", 4.4, 0.9), outcome("smg", 16.0, 0.5)],
        "smg tuned": [outcome("smg tuned", 4.4, 0.8), outcome("smg tuned", 16.0, 0.7)],
        "smg: least_load": [outcome("smg: least_load", 4.4, 1.0), None],
        "vllm-router": [outcome("vllm-router", 4.4, 0.1), outcome("vllm-router", 16.0, 0.1)],
    }
    assert best_settings(settings) == ["smg tuned", "vllm-router"]


def test_a_capacity_that_was_not_enclosed_proves_nothing_in_our_favour() -> None:
    low = [outcome(DUALMAP, 6.0, 0.7)]
    held = [outcome("smg", 2.0, 0.95)]
    enclosed = [*held, outcome("smg", 4.0, 0.5)]
    assert goodput_verdicts("agents", {DUALMAP: low, "smg": enclosed})[0].measured is None
    assert (
        goodput_verdicts("agents", {DUALMAP: [outcome(DUALMAP, 6.0, 0.95)], "smg": held})[0].measured is None
    )
    found = goodput_verdicts("agents", {DUALMAP: [outcome(DUALMAP, 6.0, 0.95)], "smg": enclosed})[0].measured
    assert found is not None
    assert found > 2.0


def test_losses_name_the_best_shipping_peer_at_the_same_rate() -> None:
    def with_tail(one: Outcome, p99_s: float) -> Outcome:
        return msgspec.structs.replace(one, ttft_s=[1.0, 4.0, p99_s])

    curves = {
        DUALMAP: [outcome(DUALMAP, 4.0, 0.9), outcome(DUALMAP, 6.0, 0.9)],
        "smg": [with_tail(outcome("smg", 4.0, 0.8, cached=0.2), 9.0)],
        "sglang-router": [with_tail(outcome("sglang-router", 4.0, 0.85, cached=0.15), 12.0)],
        "nginx": [with_tail(outcome("nginx", 4.0, 0.99), 1.0)],
    }
    assert losses(curves) == ["at 4/s: p99 never reached, smg 9.0 s; cached 10.0%, smg 20.0%"]
    assert losses({}) == []


def test_a_verdict_says_met_or_missed() -> None:
    assert str(Verdict("a", 2.0, 2.0)).endswith("met")
    assert "missed" in str(Verdict("a", 1.9, 2.0))
    assert "missed" in str(Verdict("a", 1.1, 1.0, at_least=False))
    assert str(Verdict("a", None, 1.0)).endswith("not measured")


def test_overhead_is_over_the_leanest_shipping_peer() -> None:
    findings = Findings(
        figures=[
            Figure("CPU per 8 KB request", ROUTER, "ms", [0.3]),
            Figure("CPU per 8 KB request", "smg", "ms", [0.6]),
            Figure("CPU per 8 KB request", "sglang-router", "ms", [0.2, 0.4, 0.3]),
            Figure("CPU per 8 KB request", "nginx", "ms", [0.01]),
        ]
    )
    first, *others = overhead_verdicts(findings)
    assert first.measured == pytest.approx(1.0)
    assert [one.measured for one in others] == [None, None, None]


def test_n_routers_against_one() -> None:
    fleet = [
        outcome(DUALMAP, 6.0, 0.95, cached=0.2),
        outcome(DUALMAP, 6.0, 0.93, routers=2, cached=0.15),
        outcome(DUALMAP, 6.0, 0.97, routers=4, cached=0.2),
    ]
    attainment, cached = fleet_verdicts(fleet)
    assert attainment.measured == pytest.approx(2.0)
    assert cached.measured == pytest.approx(5.0)
    assert fleet_verdicts(fleet[:1]) == []
    # One run differs from the next: the means count.
    again = [
        *fleet,
        outcome(DUALMAP, 6.0, 0.95, cached=0.2),
        outcome(DUALMAP, 6.0, 0.99, routers=2, cached=0.23),
    ]
    attainment, cached = fleet_verdicts(again)
    assert attainment.measured == 0.0
    assert cached.measured == pytest.approx(1.0)


def test_launch_lines_show_what_a_person_would_type() -> None:
    lines = {name: launch_line(peer) for name, peer in PEERS.items()}
    assert lines["smg"] == "smg launch --worker-urls URL"
    assert lines["sglang-router"] == "python -m sglang_router.launch_router --worker-urls URL"
    assert "--kv-event-source URL=EVENTS" in lines["vllm-router tuned"]
    for line in lines.values():
        assert "127.0.0.1" not in line and "--port" not in line
    assert len(launch_table().splitlines()) == len(PEERS) + 3


def test_every_setting_that_was_tried_is_another_one() -> None:
    lines = [launch_line(peer_of(name)) for name in COMPARED]
    assert len(set(lines)) == len(lines)
    assert set(SETTINGS) < set(COMPARED)
    assert {"smg", "smg tuned", "smg: power_of_two"} < set(COMPARED)
    with pytest.raises(KeyError):
        peer_of(DUALMAP)


@pytest.mark.parametrize("workload", ["conversation", "agents"])
def test_nobody_passes_the_fluid_bound(workload: str) -> None:
    offline, fluid = find_bounds(workload, replace(QUICK, count=300, agents_s=30.0), None)
    assert 1.0 < offline < fluid


@pytest.mark.parametrize("name", ["conversation", "agents"])
def test_a_workload_is_the_same_for_everybody(name: str) -> None:
    source = Source(name, 30)
    requests = source.requests(4.0)
    assert len(requests) == 30
    assert requests == source.requests(4.0)
    assert all(request.messages for request in requests)
    assert math.isfinite(requests[-1].at_s)


def test_the_page_has_every_part(tmp_path: Path) -> None:
    machine = Machine("2026-01-02T03:04:05+00:00", "a CPU", 2, sys.version.split()[0], "1.2", 0.1, {})
    curves = {
        DUALMAP: [outcome(DUALMAP, 4.0, 0.97), outcome(DUALMAP, 6.0, 0.8, lag_s=1.0)],
        "smg": [outcome("smg", 4.0, 0.4)],
        ORACLE: [],
    }
    overhead = Findings(
        figures=[Figure("CPU per 8 KB request", ROUTER, "ms", [0.3, 0.4])],
        doubts=["a: 3 requests failed", "cores full", "cores full"],
    )
    results = Results(
        machine,
        QUICK,
        False,
        {"conversation": Goodput("conversation", curves)},
        {DUALMAP: [outcome(DUALMAP, 4.0, 0.9), outcome(DUALMAP, 4.0, 0.9, routers=2)]},
        overhead,
        {"conversation": Bounds(9.0, 14.0)},
        {"smg": [outcome("smg", 4.4, 0.85), None], "smg: least_load": [None, outcome("smg", 16.0, 0.5)]},
    )
    write(results, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| dualmap | 4.82 | 0.35 |" in page
    assert "| smg | <4.00 |" in page
    assert "80.0% !" in page
    assert "- a: 3 requests failed\n- 1 windows are in doubt" in page
    assert "1 of 5 runs is doubtful" in page
    assert "No trace was given" in page
    assert "| smg | 85.0% | 10.0% | - | - |" in page
    assert "| smg: least_load | - | - | 50.0% | 10.0% |" in page
    assert "9.00/s by an order" in page and "more than 14.00/s by nobody" in page
    assert "Twice the best shipping peer's capacity is 8.00/s." in page
    assert (tmp_path / "pictures/benchmarks-conversation.png").stat().st_size < 200_000
    assert msgspec.json.encode(overhead)
