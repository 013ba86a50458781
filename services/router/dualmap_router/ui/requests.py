"""Requests as the page shows them: every placement with what was weighed, and what came of it."""

from collections.abc import Sequence

from dualmap_router.placement import Placed
from dualmap_router.ui.request_log import Entry
from dualmap_router.ui.view import Request, Step, Weighing
from dualmap_wire.redis_functions import parse_weighed

_BEGUN = ("waiting", "answering")


def request_view(entry: Entry, now_s: float) -> Request:
    """One request."""
    placed = entry.placed
    steps = [*entry.earlier, *([placed] if placed is not None else [])]
    end_s = now_s if entry.outcome in _BEGUN else entry.ended_s
    return Request(
        id=entry.request_id,
        label=entry.label,
        model=entry.model,
        outcome=entry.outcome,
        status=entry.status,
        policy=entry.policy,
        lambda_own=entry.lambda_own,
        streamed=entry.streamed,
        came_s=entry.started_s,
        age_s=now_s - entry.started_s,
        took_s=end_s - entry.started_s,
        prompt_tokens=entry.prompt_tokens,
        chunks=entry.num_chunks,
        slo_s=entry.slo_s,
        key=f"{placed.key:016x}" if placed is not None else "",
        reason=str(entry.reason or ""),
        candidates=list(placed.candidates) if placed is not None else [],
        steps=_steps(steps, entry),
        ttft_s=entry.ttft_s,
        moves=entry.moves,
        attempts=entry.attempts,
    )


def _steps(placements: Sequence[Placed], entry: Entry) -> list[Step]:
    last = len(placements) - 1
    return [
        Step(
            instance=placed.instance,
            # What it was placed for, but that the last one may have been a move or a retry.
            reason=str(entry.reason if number == last and last else placed.reason),
            cached_chunks=placed.owned_chunks,
            wait_s=max(placed.ttft_s - placed.own_s, 0.0),
            own_s=placed.own_s,
            ttft_s=placed.ttft_s,
            feasible=placed.feasible,
            alone=not placed.shared,
            weighed=_weighings(placed, entry.lambda_own),
        )
        for number, placed in enumerate(placements)
    ]


def _weighings(placed: Placed, lambda_own: float) -> list[Weighing]:
    return [
        Weighing(
            instance=weighed.instance,
            cached_chunks=weighed.owned_chunks,
            wait_s=weighed.wait_s,
            own_s=weighed.own_s,
            ttft_s=weighed.ttft_s,
            score=weighed.wait_s + (1.0 + lambda_own) * weighed.own_s,
        )
        for weighed in parse_weighed(placed.weighed)
    ]
