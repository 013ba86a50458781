"""The outbox: order kept, the first byte at once, later ones together, and a stalled router stops only the reading."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.outbox import Outbox


def data(stream: int, content: bytes) -> pb.Event:
    return pb.Event(stream=stream, data=content)


def head(stream: int) -> pb.Event:
    return pb.Event(stream=stream, head=pb.Head(status=200))


class Router:
    """Takes frames, as long as its gate is open."""

    def __init__(self) -> None:
        self.frames: list[pb.WorkerFrame] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._taken = asyncio.Condition()

    async def write(self, frame: pb.WorkerFrame) -> None:
        await self.gate.wait()
        async with self._taken:
            self.frames.append(frame)
            self._taken.notify_all()

    @property
    def events(self) -> list[pb.Event]:
        return [event for frame in self.frames for event in frame.events]

    async def has(self, num_events: int) -> None:
        async with asyncio.timeout(10), self._taken:
            await self._taken.wait_for(lambda: len(self.events) >= num_events)


@asynccontextmanager
async def draining(outbox: Outbox, write: Callable[[pb.WorkerFrame], Awaitable[None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(outbox.drain(write))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_order_is_kept_and_bytes_are_counted() -> None:
    outbox, router = Outbox(1000, 0.001), Router()
    for number in range(2500):
        outbox.put(data(number, b"x"), urgent=False)
    assert outbox.buffered_bytes == 2500
    async with draining(outbox, router.write):
        await router.has(2500)
    assert [event.stream for event in router.events] == list(range(2500))
    assert max(len(frame.events) for frame in router.frames) <= 1024
    assert outbox.buffered_bytes == 0


async def test_what_is_not_urgent_waits_for_company() -> None:
    outbox, router = Outbox(1000, 60.0), Router()
    async with draining(outbox, router.write):
        for number in range(3):
            outbox.put(data(number, b"x"), urgent=False)
            await asyncio.sleep(0)
        # Without the urgent one this would wait for a minute.
        outbox.put(head(3), urgent=True)
        await router.has(4)
    assert [len(frame.events) for frame in router.frames] == [4]


async def test_bytes_alone_leave_after_a_moment() -> None:
    outbox, router = Outbox(1000, 0.005), Router()
    async with draining(outbox, router.write):
        outbox.put(data(1, b"x"), urgent=False)
        await router.has(1)


async def test_without_coalescing_everything_leaves_at_once() -> None:
    outbox, router = Outbox(1000, 0.0), Router()
    async with draining(outbox, router.write):
        for number in range(3):
            outbox.put(data(number, b"x"), urgent=False)
            await router.has(number + 1)
    assert len(router.frames) == 3


async def test_a_stalled_router_makes_writers_wait() -> None:
    outbox, router = Outbox(100, 0.0), Router()
    router.gate.clear()
    async with draining(outbox, router.write):
        outbox.put(data(1, b"x" * 60), urgent=False)
        async with asyncio.timeout(5):
            await outbox.room()
        outbox.put(data(1, b"x" * 60), urgent=False)
        waiting = asyncio.create_task(outbox.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        # What is no body still gets in: it is small, and it ends things.
        outbox.put(pb.Event(stream=2, failed=pb.Failed()), urgent=True)
        router.gate.set()
        async with asyncio.timeout(5):
            await waiting
        await router.has(3)
    assert outbox.buffered_bytes == 0


async def test_writers_that_wake_together_do_not_overfill_it() -> None:
    outbox, router = Outbox(100, 0.0), Router()
    most = 0

    async def relay(stream: int) -> None:
        nonlocal most
        for _ in range(3):
            await outbox.room()
            outbox.put(data(stream, b"x" * 60), urgent=False)
            most = max(most, outbox.buffered_bytes)

    router.gate.clear()
    async with draining(outbox, router.write):
        writers = [asyncio.create_task(relay(stream)) for stream in range(20)]
        await asyncio.sleep(0.01)
        router.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*writers)
        await router.has(60)
    assert most <= 160
    assert outbox.buffered_bytes == 0


async def test_closing_lets_writers_go_on_into_the_void() -> None:
    outbox = Outbox(10, 0.0)
    outbox.put(data(1, b"x" * 60), urgent=False)
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.close()
    async with asyncio.timeout(5):
        await waiting
    outbox.put(data(1, b"x" * 60), urgent=True)
    assert (outbox.buffered_bytes, outbox.closed) == (0, True)
    async with asyncio.timeout(5):
        await outbox.room()
