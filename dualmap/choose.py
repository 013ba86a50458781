"""The choice of an instance: two candidates first, the whole pool only when neither is in time.

Theory of operation. `estimate` gives each instance's wait and own prefill time for the request. The
`dualmap` policy takes the smaller of wait + (1 + lambda) * own in the pair, of those that are in time if any is:
own work counts more than once because it also delays whatever comes after, which is what pulls equal prefixes to
the instance that holds them, and a popular prefix leaves that instance before it costs anybody the objective.
A prefill of 10-30 s on *both* candidates would lose every request of that key, so when the best
expected TTFT of the pair passes `escape_at` of the SLO, the same is asked of the whole pool, and the
request escapes to be in time, or if that gains more than a margin. Where it goes becomes the key's *outpost*
(`outposts`), a third candidate for what follows it: or each turn of a conversation would escape to an instance
of its own. Ties go to the first in the order given, and the caller gives the pool in an order that depends on
the key only: equal inputs, equal decisions, in every router.

The route function in `dualmap_wire/redis_functions.lua` repeats `estimate` and these policies, so that
deciding and booking are one atomic step; tests/wire/test_route_parity.py holds the two equal.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dualmap.errors import EmptyPoolError, UnknownPolicyError
from dualmap.ttft import estimate
from dualmap.types import ChoiceRequest, ChoiceRule, Decision, Estimate, InstanceView, Reason


@dataclass(frozen=True, slots=True)
class Candidates:
    """The instances that a policy chooses from."""

    pair: Sequence[InstanceView]
    """The key's one or two candidates, first ring first."""
    others: Iterable[InstanceView]
    """The rest of the pool in the key's own order, read only when a rule needs them."""
    outpost: InstanceView | None = None
    """The one of the others to which an earlier request of this key went, if any did."""
    turn: int = 0
    """Counts decisions, for `round-robin`."""


def choose(
    request: ChoiceRequest,
    pair: Sequence[InstanceView],
    others: Iterable[InstanceView],
    rule: ChoiceRule,
    turn: int = 0,
    outpost: InstanceView | None = None,
) -> Decision:
    """Pick the instance that prefills this request; the arguments are those of `Candidates`."""
    if not pair:
        raise EmptyPoolError("no instance takes new requests")
    try:
        policy = POLICIES[rule.policy]
    except KeyError:
        raise UnknownPolicyError(f"policy {rule.policy!r} is not one of {', '.join(POLICIES)}") from None
    return policy(request, Candidates(pair, others, outpost, turn), rule)


def within_bound(
    decision: Decision,
    request: ChoiceRequest,
    pool: Iterable[InstanceView],
    rule: ChoiceRule,
    max_wait_s: float,
) -> Decision | None:
    """The decision if its wait is within the bound, else the best of the pool that is; None where nobody is.

    A policy may prefer a long queue where the prefix is: that is no reason to turn a request away.
    """
    if decision.chosen.wait_s <= max_wait_s:
        return decision
    scored = (estimate(request, view, rule) for view in pool)
    best = min((e for e in scored if e.wait_s <= max_wait_s), key=lambda e: e.rank, default=None)
    return None if best is None else Decision(best, decision.chosen, reason=Reason.ESCAPE)


def _dualmap(request: ChoiceRequest, among: Candidates, rule: ChoiceRule) -> Decision:
    near = [estimate(request, view, rule) for view in among.pair]
    if among.outpost is not None:
        near.append(estimate(request, among.outpost, rule))
    best = min(near, key=lambda e: e.rank)
    # 1. A candidate answers well within the SLO: stay near.
    if min(e.ttft_s for e in near) > rule.escape_at * request.slo_s:
        # 2. None does: rank the pool, and go elsewhere only to be in time, or for a clear gain.
        outside = (estimate(request, view, rule) for view in among.others)
        winner = min(outside, key=lambda e: e.rank, default=best)
        gains = best.score - winner.score > rule.escape_margin * request.slo_s
        if (winner.feasible, gains) > (best.feasible, False):
            return Decision(winner, best, reason=Reason.ESCAPE)
    if among.outpost is not None and best.instance == among.outpost.instance:
        return Decision(best, min(near[:-1], key=lambda e: e.rank), reason=Reason.OUTPOST)
    return _near(best, near)


def _paper(request: ChoiceRequest, among: Candidates, rule: ChoiceRule) -> Decision:
    """DualMap section 3.2: affinity until the SLO is in danger, then the smaller expected TTFT."""
    scored = [estimate(request, view, rule) for view in among.pair]
    affine = min(scored, key=lambda e: (-e.owned_chunks, e.load_s))
    if affine.ttft_s > rule.paper_factor * request.slo_s:
        affine = min(scored, key=lambda e: e.ttft_s)
    return _near(affine, scored)


def _round_robin(request: ChoiceRequest, among: Candidates, rule: ChoiceRule) -> Decision:
    scored = [estimate(request, view, rule) for view in among.pair]
    views = sorted([*among.pair, *among.others], key=lambda view: view.instance)
    chosen = estimate(request, views[among.turn % len(views)], rule)
    return Decision(chosen, _other(scored, chosen.instance), reason=Reason.POLICY)


def _least_loaded(request: ChoiceRequest, among: Candidates, rule: ChoiceRule) -> Decision:
    """Fewest booked seconds of prefill work, anywhere."""
    return _over_pool(request, among, rule, lambda e: e.load_s)


def _cache_affinity(request: ChoiceRequest, among: Candidates, rule: ChoiceRule) -> Decision:
    """Longest prefix anywhere, ties to the least load."""
    return _over_pool(request, among, rule, lambda e: (-e.owned_chunks, e.load_s))


def _over_pool(
    request: ChoiceRequest,
    among: Candidates,
    rule: ChoiceRule,
    key: Callable[[Estimate], float | tuple[float, ...]],
) -> Decision:
    """The instance of the pool with the smallest key."""
    scored = [estimate(request, view, rule) for view in among.pair]
    best = min((*scored, *(estimate(request, view, rule) for view in among.others)), key=key)
    return Decision(best, _other(scored, best.instance), reason=Reason.POLICY)


def _other(scored: Sequence[Estimate], chosen: str) -> Estimate | None:
    """The first candidate that is not the chosen instance."""
    return next((e for e in scored if e.instance != chosen), None)


def _near(chosen: Estimate, scored: Sequence[Estimate]) -> Decision:
    """A decision for a candidate, with what made the difference as its reason; the best other one backs it up."""
    if len(scored) == 1:
        return Decision(chosen, None, reason=Reason.ONLY)
    other = min((e for e in scored if e is not chosen), key=lambda e: e.rank)
    reason = Reason.AFFINITY if chosen.owned_chunks > other.owned_chunks else Reason.LOAD
    return Decision(chosen, other, reason=reason)


Policy: TypeAlias = Callable[[ChoiceRequest, Candidates, ChoiceRule], Decision]
"""(request, among, rule) -> decision."""

POLICIES: dict[str, Policy] = {
    "dualmap": _dualmap,
    "paper": _paper,
    "round-robin": _round_robin,
    "least-loaded": _least_loaded,
    "cache-affinity": _cache_affinity,
}
"""Every policy by the name that settings and the `x-dualmap-policy` header use."""
