import pytest

from dualmap_sim.fleet.flight import Flight
from dualmap_sim.policies.chwbl import BoundedLoadHash
from dualmap_sim.policies.consistent_hash import ConsistentHash
from dualmap_sim.policies.ring import MemberRing, prefix_ring_key
from dualmap_sim.policies.skywalker import SkyWalkerHash
from tests.sim.policies.sights import HandMade, flight


def test_two_chunks_are_the_key_and_load_is_not() -> None:
    pool, policy = HandMade(8), ConsistentHash()
    owner = policy.place(flight((1, 2, 3)), pool.sight).index
    for _ in range(50):
        pool.pending(owner)
    assert policy.place(flight((1, 2, 99, 98)), pool.sight).index == owner
    assert policy.place(flight((1, 2)), pool.sight).index == owner
    assert {policy.place(flight((1, 2, third)), pool.sight).index for third in range(50)} == {owner}
    owners = {policy.place(flight((1, second)), pool.sight).index for second in range(10, 60)}
    assert owners == set(range(8))


def test_one_chunk_is_a_key_too() -> None:
    pool, policy = HandMade(8), ConsistentHash(num_chunks=1)
    assert len({policy.place(flight((1, second)), pool.sight).index for second in range(50)}) == 1


def test_a_member_that_leaves_takes_only_its_keys_along() -> None:
    pool, policy = HandMade(4), ConsistentHash()
    before = [policy.place(flight((key,)), pool.sight).index for key in range(200)]
    pool.pool.change_members({0: 1.0, 1: 1.0, 3: 1.0})
    after = [policy.place(flight((key,)), pool.sight).index for key in range(200)]
    assert 2 in before
    assert 2 not in after
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 2)


def test_a_walk_meets_each_member_once() -> None:
    pool = HandMade(8)
    assert sorted(MemberRing().walk(12345, pool.sight)) == list(range(8))


def ring_order(pool: HandMade, request: Flight) -> list[int]:
    return list(MemberRing().walk(prefix_ring_key(request.arrival), pool.sight))


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ((4, 5, 5, 5), 0),  # 5 of 20: under 1.25 x 5
        ((5, 5, 5, 4), 0),
        ((6, 5, 5, 5), 1),  # 7 over 1.25 x 5.5: the next on the ring
        ((6, 8, 5, 2), 2),
        ((9, 9, 9, 0), 3),
        ((0, 0, 0, 0), 0),  # 1 is over 1.25 / 4 everywhere: the owner
    ],
)
def test_chwbl_passes_on_what_is_over_the_bound(loads: tuple[int, ...], expected: int) -> None:
    pool, request = HandMade(4), flight((1, 2))
    order = ring_order(pool, request)
    for place, num in enumerate(loads):
        pool.decoding(order[place], num)
    assert BoundedLoadHash().place(request, pool.sight).index == order[expected]


def test_chwbl_counts_the_request_itself() -> None:
    pool, request = HandMade(4), flight((1, 2))
    owner, *others = ring_order(pool, request)
    # 5 with it, of 16: exactly 1.25 x 4.
    for index, num in zip((owner, *others), (4, 4, 4, 3), strict=True):
        pool.decoding(index, num)
    assert BoundedLoadHash().place(request, pool.sight).index == owner
    pool.decoding(owner)
    assert BoundedLoadHash().place(request, pool.sight).index == others[0]


def test_skywalker_ch_rings_on_the_session_then_the_tenant_then_the_prefix() -> None:
    pool, policy = HandMade(8), SkyWalkerHash()

    def owner(chunk: int, **whose: str) -> int:
        choice = policy.place(flight((chunk, chunk + 1), **whose), pool.sight)  # type: ignore[arg-type]
        assert choice is not None
        return choice.index

    assert len({owner(chunk, session="s") for chunk in range(40)}) == 1
    assert len({owner(chunk, tenant="t") for chunk in range(40)}) == 1
    assert len({owner(1, session=f"s{number}", tenant="t") for number in range(40)}) == 8
    assert len({owner(chunk) for chunk in range(40)}) == 8
