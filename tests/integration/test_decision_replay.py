"""Decisions of live routers under load, replayed through the simulator's policies, are the same decisions.

Two routers, real Valkey, the release's route function: what each decision was asked, saw and answered is recorded
in the call itself (`decision_record`). The simulator's `CorePolicy` then decides again, over the recorded views but
its own rings, split prefixes and order of the pool, and must come to the same instance, backup and reason.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from redis.asyncio import Redis

from dualmap.outposts import Outposts
from dualmap.prefix import chunk_hashes, prefix_seed
from dualmap.ttft import DEFAULT_SPEED
from dualmap.types import ChoiceRule, InstanceView, Reason
from dualmap_cli.load import RequestRecord
from dualmap_cli.stack import Stack, StackOptions
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_sim.fleet.flight import Flight
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.fleet.router import Pool, Sight, Telemetry
from dualmap_sim.fleet.state import Books, Perf
from dualmap_sim.policies.core import CorePolicy
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload
from dualmap_sim.workloads.arrival import Arrival
from dualmap_wire.redis_functions import Routed, StaleSplits

from .decision_record import Recorded, record_decisions, recorded_decisions
from .load_checks import assert_answered, replay

NUM_REQUESTS = 600
NUM_WORKERS = 4
POOL = "replayed"
POLICIES = ("dualmap", "paper", "dualmap", "least-loaded", "dualmap", "round-robin", "cache-affinity")
"""Request by request, in turn."""


@dataclass(slots=True)
class RecordedSight(Sight):
    """What a router saw of the instances then; nothing of the simulation's own books."""

    views: Mapping[str, InstanceView] = field(default_factory=dict)

    def depth(self, arrival: Arrival, index: int) -> int:
        """Chunks that the instance held of the prompt."""
        return self.views[self.pool.names[index]].owned_chunks

    def depths(self, arrival: Arrival) -> list[int]:
        """The same of each; none of those that were not offered."""
        return [self.views[name].owned_chunks if name in self.views else 0 for name in self.pool.names]

    def view(self, flight: Flight, index: int, depth: int) -> InstanceView:
        """The view on record."""
        return self.views[self.pool.names[index]]


async def test_a_live_trace_replays_to_the_same_decisions() -> None:
    requests = workload()
    async with EmbeddedStore() as store:
        redis = Redis.from_url(store.url)
        try:
            await record_decisions(redis)
            # No router decides alone because the store was late: on a busy machine it may be.
            options = StackOptions(
                workers=NUM_WORKERS, pool=POOL, redis_url=store.url, time_scale=6.0, slo_s=1.5,
                route_deadline_ms=10_000.0,
            )  # fmt: skip
            async with Stack(options) as stack:
                result = await replay(stack, requests)
            assert_answered(result.records)
            trace = await recorded_decisions(redis, POOL)
        finally:
            await redis.aclose()

    routed = [one for one in trace if isinstance(one.answer, Routed)]
    # Whoever was not decided was told of newer splits, and asked again.
    stale = [one for one in trace if isinstance(one.answer, StaleSplits)]
    assert len(stale) + len(routed) == len(trace)
    assert stale
    assert sum(one.call.count for one in routed) == NUM_REQUESTS
    assert_as_the_clients_saw(requests, result.records, routed)

    assert replayed(trace) == [decided(one) for one in routed]

    policies = Counter(one.call.rule.policy for one in routed)
    reasons = Counter(str(one.answer.reason) for one in routed if isinstance(one.answer, Routed))
    assert policies.keys() == set(POLICIES)
    assert reasons.keys() >= {"affinity", "load", "outpost", "escape", "policy"}
    # Real ones: over work on the books, prefixes held, prefills seen to run, and keys of several lengths.
    views = [view for one in routed for view in one.views.values()]
    assert sum(view.feasible_s > 0.0 for view in views) > NUM_REQUESTS / 2
    assert sum(view.owned_chunks > 1 for view in views) > NUM_REQUESTS / 4
    assert sum(view.running is not None for view in views) > NUM_REQUESTS / 2
    assert len({one.call.key_depth for one in routed}) > 1


def workload() -> list[TimedRequest]:
    """Questions about documents under one system prompt, policies in turn; chunks are whole, so keys are known."""
    shape = {
        "system_tokens": 512,
        "document_tokens": 6000,
        "max_document_tokens": 16_000,
        "answer_tokens": 4,
        "questions_mean": 4.0,
        "pause_s": 10.0,
    }
    made = make_workload("documents", Traffic(rate_req_s=3.0, count=NUM_REQUESTS, seed=3), shape)
    return [
        replace(
            request,
            messages=(),
            prompt=tuple(request.spans()),
            headers=(("x-dualmap-policy", POLICIES[index % len(POLICIES)]),),
        )
        for index, request in enumerate(made)
    ]


Decided = tuple[tuple[str, ...], str, str | None, str, bool, int]
"""The candidates; the instance, the backup, the reason; whether it is feasible there, and the chunks held."""


def decided(one: Recorded) -> Decided:
    """A live decision."""
    answer = one.answer
    assert isinstance(answer, Routed)
    return (
        tuple(one.call.pair), answer.instance, answer.backup, str(answer.reason), answer.feasible,
        answer.owned_chunks,
    )  # fmt: skip


def replayed(trace: Sequence[Recorded]) -> list[Decided]:
    """The simulator's decisions: its rings, its split prefixes, its policy, over the recorded views."""
    names = tuple(f"worker-{number}" for number in range(1, NUM_WORKERS + 1))
    telemetry = Telemetry(Loop(), lambda _: Perf(DEFAULT_SPEED), NUM_WORKERS, 1.0)
    pool = Pool.of(names, [1.0] * NUM_WORKERS, telemetry)
    policies: dict[ChoiceRule, CorePolicy] = {}
    splits: dict[int, frozenset[int]] = {}
    outposts = Outposts()
    decisions: list[Decided] = []
    for one in trace:
        call, counts = one.call, pool.counts
        now_split = frozenset(counts.splits)
        if isinstance(one.answer, StaleSplits):
            assert one.answer.splits == now_split
            continue
        # Who is not counted again has been before: it moved. Its router may not have heard of the latest splits.
        seen_splits = splits.setdefault(call.split_version, now_split)
        assert seen_splits == now_split or not call.count
        arrival = Arrival(0.0, call.charge_id, call.request.prompt_tokens, 1, one.hashes)
        flight = Flight(arrival, call.request.slo_s, 0, moves=0 if call.count else 1)
        pool.usable = sorted(pool.index_of[name] for name in one.names)
        pool.turn = one.turn - 1
        counts.splits = set(seen_splits)
        key = pool.key(arrival)
        pair = [index for index in pool.candidates(key) if index in pool.usable]
        pair = pair or [pool.usable[key % len(pool.usable)]]
        sight = RecordedSight(pool, Books.empty(NUM_WORKERS), 0.0, None, usable=pool.usable, views=one.views)  # type: ignore[arg-type]
        # Outposts are the default policy's alone.
        pool.outposts = outposts if call.rule.policy == "dualmap" else Outposts()
        if call.at_home:
            choice = policies.setdefault(call.rule, CorePolicy(call.rule)).place(flight, sight)
        else:
            # As the fleet does with a move.
            choice = sight.choice(flight, pool.index_of[one.names[0]], Reason.ONLY)
            if choice.index not in pool.candidates(key):
                pool.outposts.put(key, names[choice.index])
        if not call.count:
            counts.splits = set(now_split)
        decisions.append(
            (
                tuple(names[index] for index in pair),
                names[choice.index],
                None if choice.backup is None else names[choice.backup],
                str(choice.reason),
                choice.feasible,
                choice.depth,
            )
        )
    return decisions


def assert_as_the_clients_saw(
    requests: Sequence[TimedRequest], records: Sequence[RequestRecord], routed: Sequence[Recorded]
) -> None:
    """What was recorded is what the routers did: each answer came from where its decision said."""
    seed = prefix_seed(POOL)
    decisions: defaultdict[tuple[int, ...], Counter[tuple[str | None, str | None]]] = defaultdict(Counter)
    answers: defaultdict[tuple[int, ...], Counter[tuple[str | None, str | None]]] = defaultdict(Counter)
    moved: set[tuple[int, ...]] = set()
    for one in routed:
        if one.call.count and isinstance(one.answer, Routed):
            decisions[one.hashes][one.answer.instance, str(one.answer.reason)] += 1
    for request, record in zip(requests, records, strict=True):
        # Two questions may be the same up to the last full chunk.
        prompt = tuple(chunk_hashes("".join(span.text() for span in request.prompt).encode(), seed))
        answers[prompt][record.instance, record.reason] += 1
        if record.moves:
            moved.add(prompt)
    assert decisions.keys() == answers.keys()
    assert len(moved) < len(answers) / 2
    for prompt in answers.keys() - moved:
        assert decisions[prompt] == answers[prompt]
