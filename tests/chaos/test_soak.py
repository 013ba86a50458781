"""What the soak takes for growth."""

from collections.abc import Callable

import pytest

from .soak import flat


@pytest.mark.parametrize(
    ("fds", "is_flat"),
    [
        (lambda minute: 28.0, True),
        (lambda minute: 28.0 + (minute >= 23) * 7.0, True),
        (lambda minute: 28.0 + 8.0 * min(minute / 10, 1.0), True),
        (lambda minute: 28.0 + 0.3 * minute, False),
        (lambda minute: 28.0 + minute // 4, False),
    ],
    ids=["still", "once, late", "while it warms up", "slowly", "step by step"],
)
def test_a_soak_sees_what_leaks(fds: Callable[[int], float], is_flat: bool) -> None:
    assert flat("fds", [(60.0 * minute, fds(minute)) for minute in range(31)])[0] is is_flat
