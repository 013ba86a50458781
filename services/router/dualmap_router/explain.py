"""A dry run of a decision, with the state it was made over."""

from typing import Any

from dualmap.ttft import estimate
from dualmap.types import ChoiceRule, Estimate
from dualmap_router.placement import Placement
from dualmap_router.prompt import Prompt
from dualmap_wire.redis_functions import Routed


async def explain(placement: Placement, prompt: Prompt, slo_s: float, rule: ChoiceRule) -> dict[str, Any]:
    """What would be decided for a prompt now, without booking it."""
    routed, call, candidates = await placement.dry_run(prompt, slo_s, rule)
    views = await placement.views(prompt.packed, placement.pool.offer(prompt.model).names)
    key, depth = prompt.key(placement.splits)
    return {
        "policy": rule.policy,
        "slo_s": slo_s,
        "prompt": {
            "tokens": prompt.num_tokens,
            "bytes": prompt.num_bytes,
            "chunks": len(prompt.hashes),
            "key_chunks": depth,
            "key": f"{key:016x}",
            "split_version": placement.split_version,
        },
        "candidates": list(candidates),
        "decision": _decision(routed),
        "instances": [
            _row(estimate(call.request, view, rule), view.instance in candidates) for view in views
        ],
    }


def _decision(routed: Routed | None) -> dict[str, Any] | None:
    if routed is None:
        return None
    return {
        "instance": routed.instance,
        "backup": routed.backup,
        "reason": str(routed.reason),
        "feasible": routed.feasible,
        "cached_chunks": routed.owned_chunks,
        "backup_cached_chunks": routed.backup_owned_chunks,
        "wait_s": routed.wait_s,
        "own_s": routed.own_s,
        "predicted_ttft_s": routed.ttft_s,
    }


def _row(e: Estimate, candidate: bool) -> dict[str, Any]:
    return {
        "instance": e.instance,
        "candidate": candidate,
        "cached_chunks": e.owned_chunks,
        "load_s": e.load_s,
        "wait_s": e.wait_s,
        "own_s": e.own_s,
        "ttft_s": e.ttft_s,
        "score": e.score,
        "feasible": e.feasible,
    }
