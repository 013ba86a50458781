"""The choice: in the pair while it is in time, outside only for a clear gain, always the same way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualmap.choose import POLICIES, choose, within_bound
from dualmap.errors import CoreError, EmptyPoolError, UnknownPolicyError
from dualmap.ttft import estimate
from dualmap.types import (
    ChoiceRequest,
    ChoiceRule,
    Decision,
    InstanceView,
    PrefillSpeed,
    Reason,
    RunningPrefill,
)

FLAT = PrefillSpeed(0.0, 1e-3, 0.0)
REQUEST = ChoiceRequest(prompt_tokens=1000, chunk_tokens=100.0, slo_s=5.0)


def view(
    name: str, load_s: float = 0.0, owned: int = 0, late_s: float = 0.0, held: bool = False
) -> InstanceView:
    return InstanceView(name, load_s, late_s, owned, FLAT, None, held)


def pick(
    pair: list[InstanceView],
    others: list[InstanceView],
    policy: str = "dualmap",
    turn: int = 0,
    outpost: InstanceView | None = None,
) -> tuple[str, str | None, Reason]:
    rule = ChoiceRule(policy=policy, lambda_own=2.0, escape_at=0.7)
    got = choose(REQUEST, pair, others, rule, turn, outpost)
    return got.instance, got.backup, got.reason


A, B, C = view("a"), view("b"), view("c")

CASES = {
    # dualmap: the smaller score in the pair.
    "equal candidates: the first ring": ("dualmap", [A, B], [C], ("a", "b", Reason.LOAD)),
    "order of the pair breaks ties": ("dualmap", [B, A], [C], ("b", "a", Reason.LOAD)),
    "the less loaded": ("dualmap", [view("a", 1), B], [C], ("b", "a", Reason.LOAD)),
    "affinity pulls": ("dualmap", [A, view("b", 1, owned=5)], [C], ("b", "a", Reason.AFFINITY)),
    "affinity gives way to load": ("dualmap", [A, view("b", 2, owned=5)], [C], ("a", "b", Reason.LOAD)),
    "held by affinity and load": ("dualmap", [view("a", owned=5), B], [C], ("a", "b", Reason.AFFINITY)),
    "a lone candidate": ("dualmap", [A], [], ("a", None, Reason.ONLY)),
    "a lone candidate of a larger pool": ("dualmap", [view("a", 30)], [C], ("c", "a", Reason.ESCAPE)),
    "in time: no escape": ("dualmap", [view("a", 2.4), view("b", 2.4)], [C], ("a", "b", Reason.LOAD)),
    "not in time: escape": ("dualmap", [view("a", 2.6), view("b", 2.7)], [C], ("c", "a", Reason.ESCAPE)),
    "no escape within the margin": (
        "dualmap", [view("a", 2.6), view("b", 2.6)], [view("c", 2.55)], ("a", "b", Reason.LOAD)
    ),
    "no escape where all are busy": (
        "dualmap", [view("a", 9), view("b", 8)], [view("c", 9)], ("b", "a", Reason.LOAD)
    ),
    "escape to the best of the pool": (
        "dualmap", [view("a", 9), view("b", 8)], [view("c", 3), view("d", 2), view("e", 2)], ("d", "b", Reason.ESCAPE)
    ),
    "escape to where the prefix is": (
        "dualmap", [view("a", 9), view("b", 8)], [view("c", 2), view("d", 2.5, 9)], ("d", "b", Reason.ESCAPE)
    ),
    "late work ahead does not count": (
        "dualmap", [view("a", 0.1, late_s=60), view("b", 0.2)], [C], ("a", "b", Reason.LOAD)
    ),
    "late work that must be running does": (
        "dualmap", [view("a", late_s=60), view("b", 0.1)], [C], ("b", "a", Reason.LOAD)
    ),
    "a held candidate is left": ("dualmap", [view("a", owned=9, held=True), B], [C], ("b", "a", Reason.LOAD)),
    "a held pair escapes": ("dualmap", [view("a", held=True), view("b", held=True)], [C], ("c", "a", Reason.ESCAPE)),
    "a held pool still answers": (
        "dualmap", [view("a", 1, held=True), view("b", held=True)], [view("c", 2, held=True)], ("b", "a", Reason.LOAD)
    ),
    # paper: the longer prefix until the SLO is in danger.
    "paper: affinity whatever the load": ("paper", [A, view("b", 4.4, owned=5)], [C], ("b", "a", Reason.AFFINITY)),
    "paper: until the SLO": ("paper", [A, view("b", 4.6, owned=5)], [C], ("a", "b", Reason.LOAD)),
    "paper: equal prefixes, less load": ("paper", [view("a", 1), B], [C], ("b", "a", Reason.LOAD)),
    "paper: never escapes": ("paper", [view("a", 60), view("b", 50)], [C], ("b", "a", Reason.LOAD)),
    "paper: alone": ("paper", [view("a", 60)], [C], ("a", None, Reason.ONLY)),
    # Baselines look at the whole pool.
    "least-loaded": ("least-loaded", [view("a", 2), view("b", 1)], [C], ("c", "a", Reason.POLICY)),
    "least-loaded counts late work": (
        "least-loaded", [view("a", late_s=3), view("b", 1)], [view("c", 2)], ("b", "a", Reason.POLICY)
    ),
    "least-loaded ties": ("least-loaded", [A, B], [C], ("a", "b", Reason.POLICY)),
    "cache-affinity": (
        "cache-affinity", [view("a", owned=2), B], [view("c", 60, owned=3)], ("c", "a", Reason.POLICY)
    ),
    "cache-affinity ties": ("cache-affinity", [view("a", 2), view("b", 1)], [C], ("c", "a", Reason.POLICY)),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "pair", "others", "expected"), CASES.values(), ids=CASES)
def test_table(
    policy: str,
    pair: list[InstanceView],
    others: list[InstanceView],
    expected: tuple[str, str | None, Reason],
) -> None:
    assert pick(pair, others, policy) == expected


OUTPOSTS = {
    "warm: it goes there again": ([A, B], view("c", 1, owned=9), ("c", "a", Reason.OUTPOST)),
    "cold and no less busy": ([A, B], C, ("a", "b", Reason.LOAD)),
    "cold, and the pair is busy": ([view("a", 2), view("b", 1)], C, ("c", "b", Reason.OUTPOST)),
    "busy: the pair again, and it backs up": ([view("a", 1), view("b", 3)], view("c", 2), ("a", "c", Reason.LOAD)),
    "in time there: no escape": ([view("a", 9), view("b", 8)], view("c", 2), ("c", "b", Reason.OUTPOST)),
    "nobody in time: escape": ([view("a", 9), view("b", 8)], view("c", 7), ("d", "c", Reason.ESCAPE)),
    "beside a lone candidate": ([view("a", 1)], view("c", 0.2), ("c", "a", Reason.OUTPOST)),
}  # fmt: skip


@pytest.mark.parametrize(("pair", "outpost", "expected"), OUTPOSTS.values(), ids=OUTPOSTS)
def test_an_outpost(
    pair: list[InstanceView], outpost: InstanceView, expected: tuple[str, str | None, Reason]
) -> None:
    assert pick(pair, [outpost, view("d", 1)], outpost=outpost) == expected


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "dualmap"])
def test_only_the_default_policy_has_outposts(policy: str) -> None:
    warm = view("c", 0.5, owned=4)
    pair, others = [view("a", 1), view("b", 2, owned=9)], [warm, view("d", 3)]
    assert pick(pair, others, policy, outpost=warm) == pick(pair, others, policy)


def test_round_robin_takes_turns_by_name_whatever_the_pair() -> None:
    got = [pick([B, view("d")], [C, A], "round-robin", turn)[:2] for turn in range(5)]
    assert got == [("a", "b"), ("b", "d"), ("c", "b"), ("d", "b"), ("a", "b")]


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_pool(policy: str) -> None:
    with pytest.raises(EmptyPoolError):
        choose(REQUEST, [], [C], ChoiceRule(policy=policy))


def test_an_unknown_policy_names_itself_and_the_others() -> None:
    with pytest.raises(UnknownPolicyError, match="'fifo' is not one of dualmap, paper") as caught:
        choose(REQUEST, [A], [], ChoiceRule(policy="fifo"))
    assert isinstance(caught.value, CoreError)


SPEEDS = st.builds(PrefillSpeed, st.floats(0, 0.1), st.floats(0, 1e-3), st.floats(0, 1e-8))
RUNNING = st.none() | st.builds(
    RunningPrefill, st.floats(0, 20), st.floats(0, 30), st.booleans(), st.none() | st.floats(0, 9)
)
# Coarse values, so that ties and bounds are hit.
LOADS = st.integers(0, 40).map(lambda quarter: quarter / 4)
REQUESTS = st.builds(
    ChoiceRequest, st.integers(1, 20_000), st.floats(1.0, 1000.0), st.sampled_from([0.5, 2.0, 5.0])
)
RULES = st.builds(
    ChoiceRule,
    policy=st.sampled_from(list(POLICIES)),
    lambda_own=st.floats(0, 20),
    escape_at=st.floats(0, 1),
    escape_margin=st.floats(0, 0.5),
    paper_factor=st.floats(0.3, 1),
)


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[InstanceView], list[InstanceView]]:
    """A pair and the rest of a pool."""
    views = [
        InstanceView(
            name,
            draw(LOADS),
            draw(LOADS),
            draw(st.integers(0, 20)),
            draw(st.just(FLAT) | SPEEDS),
            draw(RUNNING),
            draw(st.sampled_from([False, False, True])),
        )
        for name in draw(st.permutations("abcdef"))[: draw(st.integers(1, 6))]
    ]
    return views[:2], views[2:]


@given(pool=pools(), request=REQUESTS, rule=RULES, turn=st.integers(0, 100))
def test_every_policy_keeps_its_promises(
    pool: tuple[list[InstanceView], list[InstanceView]], request: ChoiceRequest, rule: ChoiceRule, turn: int
) -> None:
    pair, others = pool
    got = choose(request, pair, iter(others), rule, turn)
    everyone = {v.instance: v for v in (*pair, *others)}
    names = [v.instance for v in pair]
    # The estimate is the chosen one's, and the backup another candidate.
    assert got.chosen == estimate(request, everyone[got.instance], rule)
    assert got.backup != got.instance
    assert got.backup is None or got.backup in names
    assert (got.backup is None) == (names == [got.instance])
    # The same inputs give the same decision.
    assert choose(request, pair, others, rule, turn) == got
    if rule.policy in ("dualmap", "paper"):
        check_pair_policy(got, pair, others, request, rule)
    else:
        assert got.reason == Reason.POLICY


def check_pair_policy(
    got: Decision,
    pair: list[InstanceView],
    others: list[InstanceView],
    request: ChoiceRequest,
    rule: ChoiceRule,
) -> None:
    scored = [estimate(request, v, rule) for v in pair]
    best = min(e.rank for e in scored)
    if got.reason == Reason.ESCAPE:
        assert rule.policy == "dualmap"
        assert got.instance not in [v.instance for v in pair]
        assert min(e.ttft_s for e in scored) > rule.escape_at * request.slo_s
        late = best[0]
        in_time = late and got.chosen.feasible
        assert in_time or best[1] - got.chosen.score > rule.escape_margin * request.slo_s
        assert late or got.chosen.feasible
        assert got.chosen.rank == min(estimate(request, v, rule).rank for v in others)
    else:
        assert got.instance in [v.instance for v in pair]
        owned = [e.owned_chunks for e in scored]
        if len(pair) == 1:
            assert got.reason == Reason.ONLY
        elif got.reason == Reason.AFFINITY:
            assert got.chosen.owned_chunks == max(owned) > min(owned)
        else:
            assert got.reason == Reason.LOAD and got.chosen.owned_chunks == min(owned)
        if rule.policy == "dualmap":
            assert got.chosen.rank == best


def test_who_is_in_time_goes_before_who_holds_the_prefix() -> None:
    # 4.9 s of others and a warm 0.1 s are late where 1.4 s cold are not, whatever own work weighs.
    flat = PrefillSpeed(0.0, 1e-3, 0.0)
    warm = InstanceView("warm", 4.95, 0.0, 13, flat)
    cold = InstanceView("cold", 0.0, 0.0, 0, flat)
    request = ChoiceRequest(1400, 100, 5.0)
    rule = ChoiceRule(lambda_own=1000.0)
    assert choose(request, [warm, cold], [], rule).instance == "cold"
    # The same outside the pair; and where nobody is in time the score decides.
    other = InstanceView("other", 4.0, 0.0, 0, flat)
    got = choose(request, [warm, other], [cold], rule)
    assert (got.instance, got.reason) == ("cold", Reason.ESCAPE)
    assert choose(request, [warm, other], [], rule).instance == "warm"
    # ... of who backs it up, and of who keeps a bound on the wait.
    second = InstanceView("second", 1.0, 0.0, 0, flat)
    assert choose(request, [cold, warm], [], rule, outpost=second).backup == "second"
    stuck = choose(request, [InstanceView("stuck", 10.0, 0.0, 13, flat)], [], rule)
    bounded = within_bound(stuck, request, [warm, cold], rule, 4.97)
    assert bounded is not None
    assert bounded.instance == "cold"


@given(pool=pools(), request=REQUESTS, rule=RULES, extra=st.integers(1, 10))
def test_owning_more_never_loses_the_choice(
    pool: tuple[list[InstanceView], list[InstanceView]], request: ChoiceRequest, rule: ChoiceRule, extra: int
) -> None:
    """The default policy: a chosen candidate that holds more of the prompt stays chosen."""
    pair, others = pool
    rule = ChoiceRule("dualmap", rule.lambda_own, rule.escape_at, rule.escape_margin)
    got = choose(request, pair, others, rule)
    # More cached tokens never cost more only while attention's part is small beside that of the others.
    pair = [
        InstanceView(
            v.instance,
            v.feasible_s,
            v.infeasible_s,
            v.owned_chunks + (extra if v.instance == got.instance else 0),
            v.speed,
            v.running,
            v.held,
        )
        for v in pair
    ]
    if got.reason != Reason.ESCAPE:
        assert choose(request, pair, others, rule).instance == got.instance


@given(pool=pools(), request=REQUESTS, rule=RULES)
def test_others_are_read_only_when_a_rule_needs_them(
    pool: tuple[list[InstanceView], list[InstanceView]], request: ChoiceRequest, rule: ChoiceRule
) -> None:
    pair, others = pool
    read = []

    def watched() -> list[InstanceView]:
        return others

    def reading() -> object:
        for v in watched():
            read.append(v)
            yield v

    choose(request, pair, reading(), rule)  # type: ignore[arg-type]
    calm = min(estimate(request, v, rule).ttft_s for v in pair) <= rule.escape_at * request.slo_s
    if rule.policy == "paper" or (rule.policy == "dualmap" and calm):
        assert not read


@pytest.mark.parametrize("policy", POLICIES)
def test_the_paper_factor_and_the_escape_are_settings(policy: str) -> None:
    rule = ChoiceRule(policy, lambda_own=2.0, escape_at=0.1, escape_margin=0.0, paper_factor=0.2)
    got = choose(REQUEST, [view("a", 2, owned=5), view("b", 3)], [C], rule)
    expected = {"dualmap": "c", "paper": "a", "round-robin": "a", "least-loaded": "c", "cache-affinity": "a"}
    assert got.instance == expected[policy]


BOUNDED = {
    "within it: as chosen": ([view("a", 1), B], 2.0, ("b", "a", Reason.LOAD)),
    "the prefix is behind a queue: elsewhere": ([view("a", 2.5, owned=10), B], 2.0, ("b", "a", Reason.ESCAPE)),
    "somebody outside the pair has room": ([view("a", 3), view("b", 3)], 0.5, ("c", "a", Reason.ESCAPE)),
    "nobody has": ([view("a", 3), view("b", 4)], -1.0, None),
}  # fmt: skip


@pytest.mark.parametrize(("pair", "max_wait_s", "expected"), BOUNDED.values(), ids=BOUNDED)
def test_a_bound_on_the_wait(
    pair: list[InstanceView], max_wait_s: float, expected: tuple[str, str, Reason] | None
) -> None:
    rule = ChoiceRule(lambda_own=2.0, escape_at=9.0)
    free = choose(REQUEST, pair, [C], rule)
    got = within_bound(free, REQUEST, [*pair, C], rule, max_wait_s)
    assert (got and (got.instance, got.backup, got.reason)) == expected
