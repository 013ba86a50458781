"""The JSON form of a study."""

from collections.abc import Sequence
from typing import Any

import msgspec

from dualmap.types import Slo
from dualmap_sim.fleet.result import RunResult
from dualmap_sim.study.comparison import Measured
from dualmap_sim.study.runs import Run

_LEFT_OUT = ("ttft_curve_s",)


def capacities_json(measured: Sequence[Measured], seeds: Sequence[int], share: float) -> str:
    """Capacities and what the run of the first seed at its capacity showed; null when nothing could be served."""
    results = [
        {
            "policy": one.subject.name,
            "order": one.subject.order,
            "capacity_req_s": one.capacity.rate_req_s,
            "ci": one.capacity.ci,
            "at_capacity": None if one.capacity.at_capacity is None else _run(one.capacity.at_capacity),
            "per_seed": one.capacity.per_seed,
            "workload": one.case.source.name,
            "instances": one.case.base.num_instances,
            "slo": _slo(one.case.base.slo),
        }
        for one in measured
    ]
    return _dump({"results": results, "seeds": seeds, "share": share})


def runs_json(runs: Sequence[Run], slo: Slo) -> str:
    """Whole runs, each seed's on its own."""
    results = [
        {
            "policy": run.task.subject.name,
            "order": run.task.subject.order,
            "workload": run.task.source.name,
            "rate_req_s": run.task.rate_req_s,
            "seed": run.task.seed,
            **_run(run.result),
        }
        for run in runs
    ]
    return _dump({"results": results, "slo": _slo(slo)})


def _run(result: RunResult) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(result)
    measured_rate = values.pop("rate_req_s")
    return {name: value for name, value in values.items() if name not in _LEFT_OUT} | {
        "measured_rate_req_s": measured_rate
    }


def _slo(slo: Slo) -> dict[str, float]:
    return {"base_s": slo.base_s, "per_1k_tokens_s": slo.per_1k_tokens_s}


def _dump(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
