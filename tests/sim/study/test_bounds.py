from dataclasses import replace

import pytest

from dualmap.types import Slo
from dualmap_sim.bounds import BOUNDS, pooled
from dualmap_sim.fleet.serial import SerialProfile
from dualmap_sim.fleet.setup import FleetSetup
from dualmap_sim.study.runs import RunTask, run_once
from dualmap_sim.study.source import BuiltinSource
from dualmap_sim.study.subject import make_subject

SMALL = FleetSetup(num_instances=4, slo=Slo(2.0))
DOCUMENTS = BuiltinSource("documents", count=400)


def within(name: str, rate_req_s: float) -> float:
    result = run_once(RunTask(make_subject(SMALL, name), DOCUMENTS, rate_req_s))
    assert result is not None
    return result.within_slo_share


def test_a_pool_is_as_fast_and_as_large_as_all_of_its_instances() -> None:
    pool = pooled(FleetSetup(num_instances=4, kv_blocks=100, noise=0.3, num_routers=3, sync_s=1.0))
    assert (pool.num_instances, pool.kv_blocks, pool.num_routers, pool.noise) == (1, 400, 1, 0.0)
    assert isinstance(pool.model, SerialProfile)
    assert pool.model.speed.prefill_s(8000, 0) == pytest.approx(SerialProfile().speed.prefill_s(8000, 0) / 4)
    assert pool.model.decode_s_per_token == SerialProfile().decode_s_per_token


def test_the_bounds_are_no_worse_than_the_default_policy() -> None:
    ours = within("dualmap", 2.5)
    assert 0.3 < ours < 1.0
    for bound in ("pool-late-last", "pool-late-last-preempt", "infinite-cache", "offline-order"):
        assert within(bound, 2.5) >= ours, bound


def test_a_better_order_is_a_higher_bound() -> None:
    assert within("offline-order", 4.0) >= within("pool-late-last", 4.0) >= within("pool-fcfs", 4.0)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_serves_everybody_with_every_model(name: str) -> None:
    for model in ("serial", "default"):
        subject = make_subject(replace(SMALL, model=model), name)
        result = run_once(RunTask(subject, BuiltinSource("chat", count=60), 3.0))
        assert result is not None
        assert (result.num_requests, result.unserved) == (60, 0)


def test_the_offline_order_stops_when_too_many_are_late() -> None:
    task = RunTask(make_subject(SMALL, "offline-order"), DOCUMENTS, 50.0)
    assert run_once(task, 0.9) is None
    assert run_once(task) is not None
