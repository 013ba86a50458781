import pytest

from dualmap_sim.workloads.errors import LineError
from dualmap_sim.workloads.importing.stamps import epoch_ms


@pytest.mark.parametrize(
    "stamp",
    [
        1_700_000_000.5,
        1_700_000_000_500,
        1_700_000_000_500_000,
        1_700_000_000_500_000_000,
        "1700000000.5",
        "2023-11-14T22:13:20.5Z",
        "2023-11-14T22:13:20.500",
        "2023-11-15 00:13:20.5+02:00",
    ],
)
def test_one_moment_however_it_is_written(stamp: object) -> None:
    assert epoch_ms(stamp) == pytest.approx(1_700_000_000_500)


def test_seconds_from_a_start() -> None:
    assert epoch_ms(0) == 0
    assert epoch_ms(12.25) == 12_250


@pytest.mark.parametrize("stamp", ["yesterday", "", "nan", 1e30, -1e30, 10**400, True, None, [1], "inf"])
def test_what_is_no_time(stamp: object) -> None:
    with pytest.raises(LineError, match="not a time"):
        epoch_ms(stamp)
