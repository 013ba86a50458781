"""The route function counts prefixes as `PrefixCounts` does, and tells routers when their split set is old."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualmap.prefix_key import MAX_SPLITS, ROTATE_EVERY, PrefixCounts, key_depth
from dualmap_wire.redis_functions import Overload, Routed, StaleSplits, pack_hashes, unpack_hash
from tests.wire.pool import WirePool, route_call

NAMES = ("w0", "w1", "w2", "w3")


@dataclass
class CountingRouter:
    """A router's side of the counts: its cached split set, and the core's counts of the same stream."""

    pool: WirePool
    names: Sequence[str] = NAMES
    version: int = 0
    splits: frozenset[int] = frozenset()
    stale: int = 0
    counts: PrefixCounts = field(default_factory=PrefixCounts)

    def route(self, hashes: Sequence[int]) -> None:
        """Route one request, with at most one answer that the split set is old."""
        before = self.stored_version()
        for _ in range(2):
            call = route_call(
                self.names,
                hashes=hashes,
                key_depth=key_depth(hashes, self.splits),
                split_version=self.version,
                count=True,
                book=False,
            )
            got = self.pool.route(call)
            if isinstance(got, Routed):
                changed = self.counts.observe(hashes, len(self.names))
                assert (self.stored_version() > before) == changed
                return
            assert isinstance(got, StaleSplits)
            assert got.version != self.version
            self.version, self.splits = got.version, got.splits
            self.stale += 1
        raise AssertionError("the answer to a stale split set was stale itself")

    def stored_version(self) -> int:
        """The version of the split set in the store."""
        return int(self.pool.client.hget(self.pool.keys.key("keys"), "version") or 0)

    def check(self) -> None:
        """The store holds what the core counts."""
        keys, client = self.pool.keys, self.pool.client
        state = {name.decode(): value for name, value in client.hgetall(keys.key("keys")).items()}
        assert int(state["seen"]) == self.counts.seen
        assert float(state["total"]) == pytest.approx(self.counts.total)
        assert {unpack_hash(m) for m in client.smembers(keys.key("keys", "splits"))} == self.counts.splits
        for name, counts in (("current", self.counts.current), ("older", self.counts.older)):
            stored = {unpack_hash(m): v.split() for m, v in client.hgetall(keys.key("keys", name)).items()}
            assert stored.keys() == counts.keys()
            for chunk, (count, at) in counts.items():
                assert float(stored[chunk][0]) == pytest.approx(count)
                assert int(stored[chunk][1]) == at


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    hot_share=st.sampled_from([0.2, 0.5, 0.9]),
    num_instances=st.sampled_from([1, 4, 16]),
    length=st.integers(1, 150),
)
def test_random_streams(pool: WirePool, seed: int, hot_share: float, num_instances: int, length: int) -> None:
    pool.client.flushall()
    chance = random.Random(seed)
    router = CountingRouter(pool, [f"w{i}" for i in range(num_instances)])
    for i in range(length):
        shared = [1, 2, 3, 4][: chance.randrange(5)] if chance.random() < hot_share else []
        router.route([*shared, *(1000 * i + j for j in range(10, 10 + chance.randrange(3)))])
    router.check()


def test_through_two_rotations(pool: WirePool) -> None:
    """Prefixes heat up, cool, and are left behind."""
    chance = random.Random(5)
    router = CountingRouter(pool)
    versions = set()
    for i in range(2 * ROTATE_EVERY + 200):
        phase = i // 700
        hot = [10**6 + phase, 10**6 + phase + 500, 10**6 + phase + 900][: 1 + i % 3]
        router.route([*hot, i + 1] if chance.random() < 0.6 else [i + 1, i + 2])
        versions.add(router.counts.version)
        if i % ROTATE_EVERY in (0, ROTATE_EVERY - 1) or i % 500 == 0:
            router.check()
    router.check()
    assert len(versions) > 10
    # Splits that nobody passes any more are gone, by the rotations alone.
    assert not {10**6, 10**6 + 1} & router.counts.splits
    assert router.stale <= len(versions)


def test_a_split_prefix_that_grows_rare_is_unsplit_when_seen(pool: WirePool) -> None:
    router = CountingRouter(pool)
    for i in range(100):
        router.route([1, 1000 + i])
    assert router.counts.splits == {1}
    for rounds in range(3):
        for i in range(350):
            router.route([10_000 * (rounds + 1) + i])
        router.route([1, 2])
        router.check()
    assert router.counts.splits == set()


def test_an_old_split_set_is_replaced_and_nothing_is_counted_or_booked(pool: WirePool) -> None:
    router = CountingRouter(pool)
    while not router.counts.splits:
        router.route([1, 2, 3])
    late = route_call(NAMES, hashes=[1, 2, 3], key_depth=1, split_version=0, count=True)
    got = pool.route(late)
    assert got == StaleSplits(router.stored_version(), frozenset({1}))
    assert pool.charges() == {}
    router.check()
    # A resubmission does not count, so any version will do.
    assert isinstance(pool.route(msgspec.structs.replace(late, count=False)), Routed)
    router.check()


def test_a_flush_resets_a_router_to_the_empty_split_set(pool: WirePool) -> None:
    router = CountingRouter(pool)
    while not router.splits:
        router.route([1, 2, 3])
    pool.client.flushall()
    router.counts = PrefixCounts()
    router.route([1, 2, 3])
    assert (router.version, router.splits) == (0, frozenset())
    router.check()


def test_after_a_flush_no_version_comes_again(pool: WirePool) -> None:
    """A router that was idle while the counts grew anew must not take its old splits for the new ones."""
    idle, busy = CountingRouter(pool), CountingRouter(pool)
    for _ in range(40):
        idle.route([1, 2, 3])
    assert idle.splits
    pool.client.flushall()
    for _ in range(40):
        busy.route([7, 8, 9])
    idle.counts = busy.counts
    idle.route([7, 8, 9])
    assert idle.splits == busy.splits
    assert not idle.splits & {1, 2, 3}
    idle.check()


def test_two_routers_agree_on_keys(pool: WirePool) -> None:
    one, other = CountingRouter(pool), CountingRouter(pool)
    other.counts = one.counts
    for i in range(300):
        chosen = (one, other)[i % 2]
        chosen.route([1, 2, i + 100])
        chosen.check()
    for router in (one, other):
        router.route([7])
    assert one.splits == other.splits == frozenset(one.counts.splits) != frozenset()


def test_a_split_set_at_its_bound_travels_whole(pool: WirePool) -> None:
    splits = set(range(1, MAX_SPLITS + 1))
    pool.client.sadd(pool.keys.key("keys", "splits"), *(pack_hashes([h]) for h in splits))
    pool.client.hset(pool.keys.key("keys"), mapping={"version": 9000, "seen": 5, "total": "4.9"})
    assert pool.route(route_call(NAMES, hashes=[1], key_depth=1, count=True)) == StaleSplits(
        9000, frozenset(splits)
    )
    router = CountingRouter(pool, counts=PrefixCounts(seen=5, total=4.9, version=9000, splits=splits))
    for i in range(60):
        router.route([5000, 6000 + i])
    router.check()
    assert len(router.counts.splits) == MAX_SPLITS


def test_what_is_refused_for_overload_still_counts(pool: WirePool) -> None:
    router = CountingRouter(pool)
    for number in range(len(NAMES)):
        pool.route(route_call(NAMES, charge=f"c{number}", count=False))
    before = pool.charges()
    call = route_call(NAMES[:2], hashes=[1], key_depth=1, count=True, max_wait_s=1e-6)
    assert isinstance(pool.route(call), Overload)
    router.counts.observe([1], len(NAMES))
    router.check()
    assert pool.charges() == before


def test_prompts_without_a_full_chunk_count_towards_the_total(pool: WirePool) -> None:
    router = CountingRouter(pool)
    for _ in range(3):
        router.route([])
    router.check()
