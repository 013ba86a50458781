"""Ports that nothing listens on."""

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dualmap_service import ports
from dualmap_service.errors import SettingsError
from dualmap_service.ports import free_ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_ports()))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given is given again, as by another process."""
    monkeypatch.setattr(ports, "_GIVEN", deque(maxlen=0))


def test_all_ports_of_a_row_can_be_listened_on() -> None:
    first = free_ports(4)
    with ExitStack() as listeners:
        for port in range(first, first + 4):
            listeners.enter_context(socket.socket()).bind(("127.0.0.1", port))


def test_no_port_is_given_twice_while_nothing_listens_there_yet() -> None:
    """A system of many parts chooses all its ports before most of them listen."""
    rows = [(free_ports(count), count) for _ in range(150) for count in (1, 3)]
    given = [port for first, count in rows for port in range(first, first + count)]
    assert len(set(given)) == len(given)


@pytest.mark.usefixtures("forgetful")
def test_no_row_has_a_taken_port(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", taken - 2)
    monkeypatch.setattr(ports, "_LAST", taken + 2)
    assert {free_ports() for _ in range(200)} <= {taken - 2, taken - 1, taken + 1}
    with pytest.raises(SettingsError, match="no 3 free ports"):
        free_ports(3)


@pytest.mark.usefixtures("forgetful")
def test_the_higher_ones_are_free_too(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", taken - 101)
    monkeypatch.setattr(ports, "_LAST", taken + 2)
    assert {free_ports(also=100) for _ in range(200)} <= {taken - 101, taken - 99}
