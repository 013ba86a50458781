from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap_sim.workloads import (
    WORKLOADS,
    Hotspot,
    TimedRequest,
    Traffic,
    WorkloadError,
    add_hotspot,
    make_workload,
    summarize,
)
from dualmap_sim.workloads.arrival import to_arrivals

NAMES = sorted(WORKLOADS)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    first = make_workload(name, Traffic(10, count=60, seed=3))
    again = make_workload(name, Traffic(10, count=60, seed=3))
    other = make_workload(name, Traffic(10, count=60, seed=4))
    assert first == again
    assert [one.body("m") for one in first] == [one.body("m") for one in again]
    assert not {one.body("m") for one in first} & {one.body("m") for one in other}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.1, 100))
def test_arrivals_are_in_order_and_sizes_within_bounds(name: str, seed: int, rate: float) -> None:
    requests = make_workload(name, Traffic(rate, count=200, seed=seed))
    assert len(requests) == 200
    times = [one.at_s for one in requests]
    assert times == sorted(times)
    assert times[0] > 0
    assert len({one.request_id for one in requests}) == 200
    assert all(1 <= one.input_tokens <= 131_072 and 1 <= one.output_tokens <= 4096 for one in requests)


@pytest.mark.parametrize("name", NAMES)
def test_a_duration_ends_the_workload(name: str) -> None:
    requests = make_workload(name, Traffic(20, duration_s=30))
    assert max(one.at_s for one in requests) <= 30
    # Half a minute of bursts may hold two of them or none.
    assert name == "bursts" or len(requests) == pytest.approx(600, rel=0.2)
    assert make_workload(name, Traffic(20, count=10, duration_s=30)) == requests[:10] or name == "hotspot"


# A hotspot's window depends on the whole run.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "hotspot"])
def test_a_longer_run_begins_like_a_shorter_one(name: str) -> None:
    assert make_workload(name, Traffic(5, count=300))[:100] == make_workload(name, Traffic(5, count=100))


def text(request: TimedRequest) -> str:
    return "".join(span.text() for span in request.spans())


@pytest.mark.parametrize("name", ["chat", "agents"])
def test_a_session_s_prompts_grow(name: str) -> None:
    requests = make_workload(name, Traffic(10, count=1000), {} if name == "chat" else {"step_s": 2})
    kept: dict[str, str] = {}
    grown = 0
    for one in requests:
        if one.session is None:
            # A lone task of an agent.
            assert name == "agents" and len(one.messages) == 2
            continue
        # An agent's last message is what it sees now; the next step does not keep it.
        messages = one.messages if name == "chat" else one.messages[:-1]
        prefix = "".join(span.text() for message in messages for span in message.spans)
        if one.session in kept:
            assert text(one).startswith(kept[one.session])
            grown += 1
        kept[one.session] = prefix
    assert grown > 100


def test_system_prompts_are_popular_by_zipf() -> None:
    requests = make_workload("chat", Traffic(10, count=3000), {"turns_mean": 1})
    popular = Counter(one.messages[0].spans[0].key for one in requests).most_common()
    assert popular[0][1] / len(requests) == pytest.approx(1 / sum(1 / i for i in range(1, 25)), rel=0.15)
    assert popular[0][0] == "chat.0.system.0"


def test_documents_are_asked_several_times() -> None:
    requests = make_workload("documents", Traffic(10, count=3000))
    asked = Counter(one.session for one in requests)
    assert 2.5 < len(requests) / len(asked) < 4.5
    assert summarize(requests).mean_input_tokens == pytest.approx(16_700, rel=0.15)
    assert 0.6 < summarize(requests).ideal_hit_share < 0.8


def test_system_prompts_are_eight_chunks_before_unique_text() -> None:
    requests = make_workload("system-prompts", Traffic(10, count=2000))
    arrivals = to_arrivals(requests)
    assert len({one.chunks[7] for one in arrivals}) == 24
    assert len({one.chunks[8] for one in arrivals if len(one.chunks) > 8}) == sum(
        len(one.chunks) > 8 for one in arrivals
    )


def test_what_is_popular_drifts() -> None:
    requests = make_workload("drift", Traffic(20, duration_s=1000), {"drift_s": 250})
    hot = []
    for period in range(4):
        here = [one for one in requests if int(one.at_s / 250) == period]
        counts = Counter(one.messages[0].spans[0].key for one in here).most_common()
        assert counts[0][1] / len(here) > 0.15
        hot.append(counts[0][0])
    assert len(set(hot)) == 4


def test_one_tenant_floods() -> None:
    requests = make_workload("tenants", Traffic(10, count=4000))
    counts = Counter(one.tenant for one in requests)
    assert counts["tenant-0"] / 4000 == pytest.approx(0.6, abs=0.05)
    assert len(counts) == 8
    systems = {(one.tenant, one.messages[0].spans[0].key) for one in requests}
    assert len({key for _, key in systems}) == len(systems) == 8 * 3
    by_session = {(one.session, one.tenant) for one in requests}
    assert len(by_session) == len({session for session, _ in by_session})


def test_unique_shares_nothing() -> None:
    requests = make_workload("unique", Traffic(10, count=500))
    assert summarize(requests).ideal_hit_share == 0
    assert len({text(one)[:32] for one in requests}) == 500


def test_a_hotspot_heats_only_the_window() -> None:
    plain = make_workload("unique", Traffic(10, count=3000))
    heated = add_hotspot(plain, Hotspot(share=0.5, start=0.25, end=0.75, prefix_tokens=1024))
    assert [one.at_s for one in heated] == [one.at_s for one in plain]
    hot = [index for index, one in enumerate(heated) if one.session == "hotspot"]
    assert len(hot) / 3000 == pytest.approx(0.25, abs=0.03)
    first_s, span_s = plain[0].at_s, plain[-1].at_s - plain[0].at_s
    assert all(0.25 <= (heated[index].at_s - first_s) / span_s <= 0.75 for index in hot)
    assert len({text(heated[index])[:4096] for index in hot}) == 1
    assert len({text(heated[index]) for index in hot}) == len(hot)
    assert all(heated[i] is plain[i] for i in range(3000) if i not in set(hot))
    assert add_hotspot([], Hotspot()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic(0, count=1), "rate must be above 0"),
        (lambda: Traffic(float("nan"), count=1), "rate must be above 0"),
        (lambda: Traffic(1), "number of requests or a duration"),
        (lambda: Traffic(1, count=-1), "must not be negative"),
        (lambda: Traffic(1, duration_s=float("inf")), "finite"),
        (lambda: make_workload("nope", Traffic(1, count=1)), "no workload is called 'nope'; there are chat"),
        (lambda: make_workload("chat", Traffic(1, count=1), {"size": 1}), "chat has no setting 'size'"),
        (lambda: make_workload("chat", Traffic(1, count=1), {"user_tokens": 1.5}), "whole number"),
        (lambda: make_workload("chat", Traffic(1, count=1), {"user_tokens": 0}), "user_tokens must be 1"),
        (lambda: make_workload("chat", Traffic(1, count=1), {"turns_mean": 0.5}), "turns_mean must be 1"),
        (lambda: make_workload("chat", Traffic(1, count=1), {"skew": -1}), "skew must be 0 or more"),
        (lambda: Hotspot(share=1.5), "share <= 1"),
        (lambda: Hotspot(start=0.8, end=0.2), "start <= end"),
        (lambda: make_workload("tenants", Traffic(1, count=1), {"flood_share": 2}), "flood_share must be"),
        (lambda: make_workload("drift", Traffic(1, count=1), {"drift_s": 0}), "drift_s must be above 0"),
        (lambda: make_workload("agents", Traffic(1, count=1), {"long_share": 0.9}), "not be more than 1"),
    ],
)
def test_bad_values_name_themselves(make: Callable[[], object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make()
