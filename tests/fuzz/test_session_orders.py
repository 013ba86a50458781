"""Orders of events that once were answered wrongly, or that the state machine must be able to reach."""

from collections.abc import Iterator

import pytest

from .session_client import read
from .session_engine import LENGTH, answer
from .session_world import SessionWorld

FORMS = ["ids", "text", "chat"]


@pytest.fixture
def world() -> Iterator[SessionWorld]:
    """A router and two workers; in the end all is answered and nothing left."""
    world = SessionWorld([7, 30], 1 << 20)
    try:
        yield world
        world.end()
    finally:
        world.close()


def says(world: SessionWorld, pieces: int) -> None:
    """The one engine that has a stream says that much more of it, piece by piece."""
    for _ in range(pieces):
        [call] = world.streams
        call.speak(1)
        world.settle(0.02)


def begun(world: SessionWorld, form: str, pieces: int, usage: bool = True) -> None:
    """One stream, whose client has been sent so many pieces."""
    world.ask(form, streamed=True, queued=True, twin=False, usage=usage, tokens=10)
    world.settle(0.05)
    says(world, pieces)
    assert world.clients[-1].body.count(b"\n\n") == pieces


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["between", "within", "saying so"])
def test_a_stream_goes_on_as_often_as_its_engine_dies(world: SessionWorld, form: str, how: str) -> None:
    for number in (0, 1):
        begun(world, form, 2, usage=bool(number))
        for _ in range(2):
            [call] = world.streams
            call.die(how)
            world.settle(0.2)
            says(world, 2)
        [call] = world.streams
        call.end()
        world.settle(0.05)
        flight, client = world.flights[number], world.clients[number]
        assert (client.outcomes, flight.attempts) == (["end"], 2)
        assert flight.splice is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("behind", ["its last token", "its reason", "its usage", "its end mark"])
def test_an_engine_that_dies_behind_the_text_needs_no_other(
    world: SessionWorld, form: str, behind: str
) -> None:
    """The first request has its finish reason in an event of its own."""
    opening = form == "chat"
    pieces = LENGTH + opening + ["its last token", "its reason", "its usage", "its end mark"].index(behind)
    begun(world, form, pieces)
    [call] = world.streams
    call.die("between")
    world.settle(0.2)
    assert world.calls == []
    assert world.clients[0].outcomes == ["end"]


@pytest.mark.parametrize("at_turn", [0, 1, 3, 10, 30])
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_stream_waits_for_instances_that_go_away_while_it_is_prepared(
    world: SessionWorld, deaths: int, at_turn: int
) -> None:
    """Whether or not each instance has failed it once, and however far the preparation has come."""
    begun(world, "ids", 2)
    for death in range(deaths):
        world.settle(0.2)
        [call] = world.streams
        call.die("between")
        until_prepared(world, death + 1)
    for _ in range(at_turn):
        world.settle(0)
    for worker in world.workers:
        world.loop.hosts.pop(worker.port)
    for link in list(world.loop.links):
        world.loop.call_soon(link.abort)
    world.settle(1.0)
    assert world.clients[0].outcomes == []
    for worker in world.workers:
        world.loop.hosts[worker.port] = worker.servicer
    world.settle(3.0)
    assert read(world.clients[0].body).text == answer(0, 2)
    [call] = world.streams
    call.end()
    world.settle(0.05)
    assert world.clients[0].outcomes == ["end"]


def until_prepared(world: SessionWorld, deaths: int) -> None:
    """Its rest is about to be asked for."""
    flight, before = world.flights[0], world.flights[0].splice
    for _ in range(500):
        if flight.attempts == deaths and flight.splice is not before:
            return
        world.settle(0)
    raise AssertionError("its rest is not asked for")
