"""Containers that are killed, stopped or frozen under load: who notices, and who may."""

import asyncio
import time

import pytest

from ..waiting import eventually
from .conftest import Compose
from .load import held_streams, under_load
from .rest import all_back, at_rest, spans, state_of

CRASHED, STOPPED = "137", "0"
"""Exit codes: of SIGKILL, and of a process that ended by itself."""


async def nothing_is_left(system: Compose) -> None:
    await eventually(lambda: all_back(system), 30.0)
    await eventually(lambda: at_rest(system), 30.0)


def router_id(system: Compose, container: str) -> str:
    """What answers call it."""
    [host] = system.inspect("{{.Config.Hostname}}", container)
    return f"{host}-8000"


@pytest.mark.parametrize("service", ["engine-1", "worker-2", "rebalancer", "redis", "jaeger"])
async def test_a_killed_container_costs_no_request_and_cuts_no_stream(scaled: Compose, service: str) -> None:
    container = scaled.containers(service)[0]
    async with under_load(scaled) as load:
        await asyncio.to_thread(scaled.signal, container)
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 40, 60.0)
        assert scaled.inspect("{{.State.ExitCode}}", container) == [CRASHED]
        await scaled.start(container)
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 40, 60.0)
    assert (load.wrong, load.cut) == ([], [])
    await nothing_is_left(scaled)
    if service == "jaeger":
        await eventually(lambda: spans(scaled), 60.0)


async def test_a_killed_router_breaks_the_streams_that_it_carried_and_nothing_else(scaled: Compose) -> None:
    container = scaled.containers("router")[0]
    killed = router_id(scaled, container)
    # Whole answers of the killed router are asked of another by the gateway: the client asks once.
    async with under_load(scaled, whole=4, streams=0) as load, held_streams(scaled) as held:
        assert set(held.carriers) > {killed}
        await asyncio.to_thread(scaled.signal, container)
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 40, 60.0)
        await scaled.start(container)
    assert held.broken == {killed: held.carriers[killed]}, held.said
    assert len(held.said) == held.carriers[killed], held.said
    assert load.wrong == []
    # A client that asks again gets its stream, from whoever is there.
    async with under_load(scaled, whole=0, streams=4) as load:
        await asyncio.to_thread(scaled.signal, container)
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 20, 60.0)
        await scaled.start(container)
    assert load.wrong == []
    await nothing_is_left(scaled)


async def test_the_gateway_is_killed_and_clients_come_back_to_it(scaled: Compose) -> None:
    [container] = scaled.containers("gateway")
    async with under_load(scaled, max_retries=5) as load:
        await asyncio.to_thread(scaled.signal, container)
        # There is one gateway: who asks has to wait for it.
        await scaled.start(container)
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 40, 60.0)
    assert load.wrong == []
    await nothing_is_left(scaled)


async def test_a_stopped_router_finishes_what_it_carries(scaled: Compose) -> None:
    container = scaled.containers("router")[1]
    async with under_load(scaled, whole=4) as load, held_streams(scaled) as held:
        assert set(held.carriers) > {router_id(scaled, container)}
        await asyncio.to_thread(scaled.docker, "stop", container)
        assert scaled.inspect("{{.State.ExitCode}}", container) == [STOPPED]
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 20, 60.0)
        await scaled.start(container)
    assert held.said == []
    assert (load.wrong, load.cut) == ([], [])
    await nothing_is_left(scaled)


async def test_the_stopped_gateway_finishes_what_it_carries(scaled: Compose) -> None:
    [container] = scaled.containers("gateway")
    async with held_streams(scaled) as held:
        await asyncio.to_thread(scaled.run, "stop", "gateway")
        stopped_s = time.monotonic()
        assert scaled.inspect("{{.State.ExitCode}}", container) == [STOPPED]
    assert held.said == []
    # Not for as long as clients keep connections that they do not use.
    assert stopped_s - max(stream.ended_s for stream in held.streams) < 20.0
    await scaled.start(container)
    await nothing_is_left(scaled)


async def test_a_stopped_worker_drains(scaled: Compose) -> None:
    [container] = scaled.containers("worker-3")
    async with under_load(scaled) as load:
        await asyncio.to_thread(scaled.run, "stop", "worker-3")
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 30, 60.0)
        instances = (await state_of(scaled))["instances"]
        await scaled.start(container)
    assert "worker-3" not in instances
    assert (load.wrong, load.cut) == ([], [])
    await nothing_is_left(scaled)


async def test_health_checks_see_who_does_not_answer(scaled: Compose) -> None:
    services = ("router", "engine-2", "rebalancer", "jaeger")
    frozen = [scaled.containers(service)[0] for service in services]
    # A worker says that its engine is away.
    [behind] = scaled.containers("worker-2")
    well = [scaled.containers(service)[-1] for service in ("router", "engine-1", "worker-1", "rebalancer")]
    for container in frozen:
        scaled.signal(container, "STOP")
    try:
        await eventually(lambda: scaled.health(*frozen, behind) == {"unhealthy"}, 60.0)
        assert scaled.health(*well) == {"healthy"}
    finally:
        for container in frozen:
            scaled.signal(container, "CONT")
    await eventually(lambda: scaled.health(*frozen, behind, *well) == {"healthy"}, 60.0)
    await nothing_is_left(scaled)
