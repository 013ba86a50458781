"""Breakers: what opens one, what closes it, and who is left out meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from dualmap_router.breakers import Breakers

ALL = frozenset(("a", "b", "c", "d"))


class Bench:
    """Breakers of three failures and ten seconds, on a clock that stands still."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now_s = 100.0
        self.breakers = Breakers(3, 10.0, lambda: self.now_s, lambda: chance)

    def breaks(self, instance: str, times: int = 1) -> None:
        for _ in range(times):
            self.now_s += 0.01
            self.breakers.failed(instance, self.breakers.sent(instance))

    def answers(self, instance: str) -> None:
        self.breakers.sent(instance)
        self.breakers.answered(instance)

    @property
    def out(self) -> set[str]:
        return set(self.breakers.left_out(ALL))


def test_it_opens_after_so_many_in_a_row() -> None:
    bench = Bench()
    bench.breaks("a", 2)
    bench.answers("a")
    bench.breaks("a", 2)
    assert (bench.out, bench.breakers.num_open) == (set(), 0)
    bench.breaks("a")
    assert (bench.out, bench.breakers.num_open) == ({"a"}, 1)


def test_requests_that_died_together_are_one_failure() -> None:
    bench = Bench()
    sent_s = [bench.breakers.sent("a") for _ in range(10)]
    bench.now_s += 1.0
    for one in sent_s:
        bench.breakers.failed("a", one)
    assert bench.out == set()
    bench.breaks("a", 2)
    assert bench.out == {"a"}


def test_one_request_tries_it_after_the_pause() -> None:
    bench = Bench()
    bench.breaks("a", 3)
    bench.now_s += 9.9
    assert bench.out == {"a"}
    bench.now_s += 0.2
    assert bench.out == set()
    sent_s = bench.breakers.sent("a")
    assert bench.out == {"a"}
    bench.breakers.failed("a", sent_s)
    bench.now_s += 19.9
    assert bench.out == {"a"}
    bench.now_s += 0.2
    assert bench.out == set()
    bench.answers("a")
    assert (bench.out, bench.breakers.num_open) == (set(), 0)
    bench.breaks("a", 2)
    assert bench.out == set()


def test_a_try_that_comes_to_nothing_is_followed_by_another() -> None:
    bench = Bench()
    bench.breaks("a", 3)
    bench.now_s += 10.1
    bench.breakers.sent("a")
    bench.now_s += 20.1
    assert bench.out == set()


def test_pauses_grow_to_a_minute() -> None:
    bench = Bench()
    bench.breaks("a", 3)
    for _ in range(100):
        bench.now_s += 60.1
        assert bench.out == set()
        bench.breaks("a")
        assert bench.out == {"a"}


def test_nobody_is_left_out_where_most_would_be() -> None:
    bench = Bench()
    for instance in "abc":
        bench.breaks(instance, 3)
    assert bench.out == set()
    bench.answers("c")
    assert bench.out == {"a", "b"}
    assert bench.breakers.left_out(frozenset(("a", "b", "c"))) == frozenset()
    assert bench.breakers.left_out(frozenset(("c", "d"))) == frozenset()


def test_who_leaves_is_forgotten() -> None:
    bench = Bench()
    bench.breakers.keep({"a": 1, "b": 1})
    bench.breaks("a", 3)
    bench.breakers.keep({"a": 1, "b": 1, "c": 1})
    assert bench.out == {"a"}
    bench.breakers.keep({"b": 1})
    assert (bench.out, bench.breakers.num_open) == (set(), 0)


def test_an_engine_that_began_anew_is_not_held_to_what_the_last_one_broke() -> None:
    bench = Bench()
    bench.breakers.keep({"a": 1, "b": 1})
    bench.breaks("a", 3)
    bench.breakers.keep({"a": 2, "b": 1})
    assert (bench.out, bench.breakers.num_open) == (set(), 0)
    bench.breaks("a", 3)
    bench.breakers.keep({"a": 2, "b": 2})
    assert bench.out == {"a"}


def test_no_pause_is_no_breaker() -> None:
    breakers = Breakers(1, 0.0)
    breakers.failed("a", breakers.sent("a"))
    assert (breakers.left_out(ALL), breakers.num_open) == (frozenset(), 0)


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_routers_do_not_try_at_once(chance: float) -> None:
    bench = Bench(chance)
    bench.breaks("a", 3)
    began_s = bench.now_s
    while bench.out:
        bench.now_s += 0.05
    assert abs(bench.now_s - began_s - (7.5 + 5.0 * chance)) <= 0.06
