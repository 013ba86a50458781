"""Instances as the page shows them: what is booked, what was heard, what this router sends them."""

import time
from typing import Any

from dualmap.ttft import estimate
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView
from dualmap_router.sessions import Sessions
from dualmap_router.ui.view import Instance
from dualmap_router.ui.window import Bucket
from dualmap_service.registry import Member, Membership, MembershipWatch
from dualmap_wire.board import Board, Posted

_RULE = ChoiceRule()
_TYPICAL_PROMPT_TOKENS = 4000
_REMEMBERED_S = 300.0
_MOST_REMEMBERED = 64


class Departures:
    """Remembers for a while who has left the pool."""

    def __init__(self, watch: MembershipWatch) -> None:
        self._here: set[str] = set()
        self._left_s: dict[str, float] = {}
        watch.on_change.append(self._follow)

    def _follow(self, membership: Membership) -> None:
        here = set(membership.members)
        for name in self._here - here:
            self._left_s.pop(name, None)  # a name that leaves again goes to the end
            self._left_s[name] = time.monotonic()
        for name in [name for name in self._left_s if name in here]:
            del self._left_s[name]
        while len(self._left_s) > _MOST_REMEMBERED:
            del self._left_s[next(iter(self._left_s))]
        self._here = here

    def recent(self, now_s: float) -> list[tuple[str, float]]:
        """(name, seconds since), the latest first."""
        gone = [(name, now_s - left_s) for name, left_s in reversed(self._left_s.items())]
        return [(name, age_s) for name, age_s in gone if age_s < _REMEMBERED_S]


def instance_views(
    watch: MembershipWatch,
    views: list[InstanceView],
    sessions: Sessions,
    board: Board | None,
    lately: Bucket,
    slo_s: float,
) -> list[Instance]:
    """All instances of the pool, by name."""
    request = ChoiceRequest(prompt_tokens=1, chunk_tokens=1.0, slo_s=slo_s)
    # On the store's clock, carried on by this process's while the store is away.
    since_s = time.monotonic() - watch.read_s
    reachable = sessions.reachable
    shown = []
    for view in views:
        member = watch.current.members.get(view.instance)
        if member is None:
            continue
        age_s = _telemetry_age_s(member, watch.current.now_us, since_s)
        wait_s = estimate(request, view, _RULE).wait_s
        state = _state(member, view.instance in reachable)
        session = sessions.get(view.instance)
        num_open = len(session) if session is not None else 0
        shown.append(_instance(member, view, state, wait_s, age_s, num_open, board, lately))
    return shown


def _instance(
    member: Member,
    view: InstanceView,
    state: str,
    wait_s: float,
    age_s: float | None,
    num_open: int,
    board: Board | None,
    lately: Bucket,
) -> Instance:
    registration, name = member.registration, view.instance
    requests = lately.instances[name]
    posted = board.instances.get(name) if board is not None else None
    heard: dict[str, Any] = {} if posted is None else _heard(posted)
    return Instance(
        name=name,
        state=state,
        model=registration.model,
        weight=registration.weight,
        kv_tokens=registration.kv_tokens,
        kv_events=registration.kv_events,
        telemetry_age_s=age_s,
        wait_s=wait_s,
        booked_s=view.feasible_s + view.infeasible_s,
        late_s=view.infeasible_s,
        tokens_s=_TYPICAL_PROMPT_TOKENS / max(view.speed.prefill_s(_TYPICAL_PROMPT_TOKENS, 0), 1e-6),
        speed_known=member.perf is not None,
        held=view.held,
        hot=board is not None and name in board.hot,
        running_s=view.running.elapsed_s if view.running is not None else None,
        share=requests / lately.requests if lately.requests else None,
        requests=requests,
        open=num_open,
        **heard,
    )


def _heard(posted: Posted) -> dict[str, Any]:
    return {
        "queued": posted.queued,
        "oldest_s": posted.oldest_s,
        "late": posted.late,
        "engine_running": posted.engine_running,
        "kv_use": posted.kv_use,
        "owned_chunks": posted.owned_chunks,
        "preemptions": posted.preemptions,
        "fit_error": posted.fit_residual,
    }


def _telemetry_age_s(member: Member, now_us: int, since_s: float) -> float | None:
    if member.perf is None:
        return None
    return max((now_us - member.perf.reported_us) / 1e6, 0.0) + since_s


def _state(member: Member, reachable: bool) -> str:
    if not member.alive:
        return "gone"
    if not reachable:
        return "unreachable"
    return "draining" if member.registration.state == "draining" else "active"
