"""Outposts: the last one counts, and their number is bounded."""

from dualmap.outposts import MAX_OUTPOSTS, Outposts


def test_the_last_one_counts() -> None:
    outposts = Outposts()
    assert outposts.get(1) is None
    outposts.put(1, "a")
    outposts.put(2, "b")
    outposts.put(1, "c")
    assert (outposts.get(1), outposts.get(2)) == ("c", "b")


def test_those_in_use_outlive_a_generation_and_the_others_go() -> None:
    outposts = Outposts()
    for key in range(MAX_OUTPOSTS):
        outposts.put(key, "a")
    # The first one more begins a generation; what was there can still be found.
    outposts.put(MAX_OUTPOSTS, "b")
    assert outposts.get(0) == "a"
    outposts.put(0, "c")
    for key in range(MAX_OUTPOSTS + 1, 2 * MAX_OUTPOSTS):
        outposts.put(key, "d")
    assert outposts.get(0) == "c" and outposts.get(1) is None
    assert len(outposts.current) + len(outposts.older) <= 2 * MAX_OUTPOSTS
