"""A whole worker in this process, in front of an engine on a real socket and a real store."""

import asyncio

import pytest

from dualmap.types import EngineLoad
from dualmap_service.lifecycle import ServiceFailedError, wait_for
from dualmap_service.registry import MembershipWatch
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.app import WorkerApp
from dualmap_worker.outbox import Outbox
from dualmap_worker.settings import WorkerSettings

from ...waiting import eventually
from .conftest import SocketEngine, whole


async def test_of_two_that_share_a_name_the_earlier_start_ends_and_says_why(
    store: EmbeddedStore, socket_engine: SocketEngine
) -> None:
    async def says(_: asyncio.StreamWriter) -> bytes:
        return whole(b'{"data": [{"id": "m"}]}')

    socket_engine.says = says
    settings = WorkerSettings(redis_url=store.url, engine_url=socket_engine.url, instance="w", drain_s=1.0)
    stops = [asyncio.Event(), asyncio.Event()]
    first = asyncio.create_task(WorkerApp(settings, stops[0]).run())
    await asyncio.sleep(0.5)
    second = asyncio.create_task(WorkerApp(settings, stops[1]).run())
    assert await wait_for(stops[0], 20.0)
    with pytest.raises(ServiceFailedError, match=r"registered as 'w'.*DUALMAP_WORKER_INSTANCE"):
        await first
    assert not stops[1].is_set()
    stops[1].set()
    await second


async def test_adapters_that_come_and_go_are_registered(
    store: EmbeddedStore, shared: Store, socket_engine: SocketEngine
) -> None:
    serves = b'{"data": [{"id": "m"}, {"id": "also-m"}]}'

    async def says(_: asyncio.StreamWriter) -> bytes:
        return whole(serves)

    socket_engine.says = says
    stop = asyncio.Event()
    settings = WorkerSettings(redis_url=store.url, engine_url=socket_engine.url, instance="w", drain_s=1.0)
    running = asyncio.create_task(WorkerApp(settings, stop).run())
    watch = MembershipWatch(shared, settings.pool)

    async def registered(*names: str) -> bool:
        await watch.poll()
        member = watch.current.members.get("w")
        return member is not None and sorted(member.registration.serves) == sorted(names)

    await eventually(lambda: registered("m", "also-m"))
    serves = b'{"data": [{"id": "m"}, {"id": "lora", "parent": "m"}]}'
    await eventually(lambda: registered("m", "lora"))
    generation = watch.current.members["w"].registration.generation
    serves = b'{"data": [{"id": "m"}]}'
    await eventually(lambda: registered("m"))
    # The same engine with the same cache: nothing that is known of it is forgotten.
    assert watch.current.members["w"].registration.generation == generation
    stop.set()
    await running


async def test_nothing_is_asked_of_an_engine_that_was_closed(
    store: EmbeddedStore, socket_engine: SocketEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def says(_: asyncio.StreamWriter) -> bytes:
        return whole(b'{"data": [{"id": "m"}]}')

    socket_engine.says = says
    # Polls at every moment of a stop that takes its time, since nobody takes the last spans.
    monkeypatch.setattr("dualmap_worker.app.POLL_S", 0.001)
    monkeypatch.setattr("dualmap_worker.app.NAMES_POLL_S", 0.001)
    stop = asyncio.Event()
    settings = WorkerSettings(
        redis_url=store.url, engine_url=socket_engine.url, trace_endpoint="http://127.0.0.1:9"
    )
    running = asyncio.create_task(WorkerApp(settings, stop).run())
    await eventually(lambda: len(socket_engine.asked) > 20)
    stop.set()
    await running


async def test_what_was_held_for_an_engine_is_handed_on_when_it_is_gone() -> None:
    app = WorkerApp(WorkerSettings(engine_url="http://127.0.0.1:1"), asyncio.Event())
    await app._engine.open()
    try:
        # Full when it was last asked.
        app._admission.load = EngineLoad(running=9, waiting=9, kv_use=1.0)
        outbox = Outbox(1000, 0.0)
        submit = pb.Submit(stream=1, request_id="r", method="POST", path="/v1/x", queued=True)
        app._requests.submit(submit, "router", outbox)
        await app._watch.poll()
        await asyncio.wait_for(app._requests.idle.wait(), 10)
        assert [event.failed.kind for event in outbox._events] == [pb.Failed.ENGINE_LOST]
    finally:
        app._requests.close()
        app._publisher.close()
        await app._server.stop(None)
        await app._engine.close()
