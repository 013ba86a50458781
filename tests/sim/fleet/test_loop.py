from hypothesis import given
from hypothesis import strategies as st

from dualmap_sim.fleet.loop import Loop


def test_callbacks_come_in_order_of_time_and_equal_times_in_the_order_they_were_asked_for() -> None:
    loop, seen = Loop(), list[str]()
    loop.at(2.0, seen.append, "later")
    loop.at(1.0, seen.append, "first")
    loop.at(1.0, seen.append, "second")
    loop.run()
    assert seen == ["first", "second", "later"]
    assert loop.now_s == 2.0


def test_after_counts_from_the_callback_under_way() -> None:
    loop, seen = Loop(), list[float]()
    loop.at(1.0, lambda: loop.after(0.5, lambda: seen.append(loop.now_s)))
    loop.run()
    assert seen == [1.5]


def test_a_time_that_has_passed_means_now() -> None:
    loop, seen = Loop(), list[float]()
    loop.at(3.0, lambda: loop.at(1.0, lambda: seen.append(loop.now_s)))
    loop.run()
    assert seen == [3.0]


def test_a_cancelled_timer_never_fires_and_may_be_cancelled_again() -> None:
    loop, seen = Loop(), list[str]()
    timer = loop.at(1.0, seen.append, "cancelled")
    loop.at(0.5, timer.cancel)
    fired = loop.at(0.7, seen.append, "fired")
    loop.run()
    timer.cancel()
    fired.cancel()
    assert seen == ["fired"]


def test_stop_ends_the_run_after_the_callback_under_way() -> None:
    loop, seen = Loop(), list[str]()

    def stop() -> None:
        loop.stop()
        seen.append("to its end")

    loop.at(1.0, stop)
    loop.at(2.0, seen.append, "never")
    loop.run()
    assert seen == ["to its end"]
    assert loop.now_s == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=30))
def test_the_clock_never_runs_back(asked: list[tuple[int, int, bool]]) -> None:
    """Each callback asks for another one, some of which are cancelled at once."""
    loop = Loop()
    seen: list[tuple[float, int]] = []
    due: list[tuple[float, int]] = []

    def come(number: int, delay: int, cancelled: bool) -> None:
        timer = loop.after(delay, lambda: seen.append((loop.now_s, number)))
        if cancelled:
            timer.cancel()
        else:
            due.append((loop.now_s + delay, number))

    for number, (at, delay, cancelled) in enumerate(asked):
        loop.at(at, come, number, delay, cancelled)
    loop.run()
    assert [time_s for time_s, _ in seen] == sorted(time_s for time_s, _ in seen)
    assert sorted(seen) == sorted(due)
