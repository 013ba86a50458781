"""`python -m bench.router.inside`: what the router's own code costs, sockets left out.

The whole router in this process, on uvloop, with transports that are no sockets: requests are handed to its HTTP
connections as bytes, a stand-in for Redis answers its commands and one for a worker its frames, and the time that
the stand-ins take is taken off. Less like a live system than `python -m bench.router`, since code and data stay in
the processor's caches; but the best of many short runs shows a change of a few microseconds, also on a busy machine.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvloop

from bench.router.inside_peers import Client, Peer, Redis, Worker
from dualmap_router.app import RouterApp
from dualmap_router.settings import RouterSettings
from dualmap_service.registry import Member, Membership
from dualmap_service.store_pipeline import Pipeline
from dualmap_wire.telemetry import Registration

_INSTANCES = ("worker-1", "worker-2")
_HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nuser-agent: bench\r\naccept: application/json\r\n"
    "authorization: Bearer bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
)


class Inside:
    """A router between its stand-ins."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.app = RouterApp(RouterSettings(slo_ttft_s=60.0, route_deadline_ms=1000.0), asyncio.Event())
        self.workers: list[Worker] = []
        self._number = 0

    async def start(self) -> None:
        """Wire everything up."""
        store = self.app.store
        redis = Redis(_INSTANCES)
        pipeline = Pipeline(redis, lambda: None)  # type: ignore[arg-type]
        redis.protocol = pipeline
        store._pipeline = pipeline
        members = {
            name: Member(
                Registration(
                    instance=name,
                    pool="p",
                    model="m",
                    grpc_address="w:1",
                    telemetry_address="w:2",
                    generation=1,
                ),
                True,
                None,
            )
            for name in _INSTANCES
        }
        membership = Membership(1, members, 0)
        self.app.watch.current = membership
        self.app.sessions.follow(membership)
        for name in _INSTANCES:
            session: Any = self.app.sessions.get(name)
            worker = Worker()
            session._loop = _Dialling(self._loop, worker)
            self.workers.append(worker)
        while len(self.app.sessions.reachable) < len(_INSTANCES):  # noqa: ASYNC110 - once
            await asyncio.sleep(0.01)
        self.app._membership_changed(membership)

    def client(self) -> Client:
        """A connected client."""
        client = Client()
        client.protocol = self.app.http._connection()
        client.protocol.connection_made(client)
        return client

    def request(self, num_bytes: int, stream: bool) -> bytes:
        """A prompt that nobody has sent before."""
        self._number += 1
        opening = b'{"model":"m","max_tokens":1,%b"messages":[{"role":"user","content":"%012d' % (
            b'"stream":true,' if stream else b"",
            self._number,
        )
        body = opening + b"a word and " * ((num_bytes - len(opening)) // 11) + b'"}]}'
        return _HEAD.format(len(body)).encode() + body


class _Dialling:
    """The loop, but that it connects to a stand-in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: Worker) -> None:
        self._loop = loop
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, made: Callable[[], Any], *_: object, **__: object) -> None:
        """Connect to the worker."""
        self._worker.protocol = made()
        self._worker.protocol.connection_made(self._worker)


async def whole(inside: Inside, num_bytes: int, at_once: int, requests: int) -> float:
    """Microseconds of CPU per request that is answered whole."""
    clients = [inside.client() for _ in range(at_once)]
    sent = [[inside.request(num_bytes, False) for _ in clients] for _ in range(requests // at_once)]
    begin_s, others_s = time.thread_time(), Peer.spent_s
    for batch in sent:
        for client, request in zip(clients, batch, strict=True):
            client.receive(request)
        while any(client.waits for client in clients):  # noqa: ASYNC110 - each turn of the loop counts
            await asyncio.sleep(0)
    used_s = time.thread_time() - begin_s - (Peer.spent_s - others_s)
    for client in clients:
        client.protocol.connection_lost(None)
    return used_s / (len(sent) * at_once) * 1e6


async def streamed(inside: Inside, at_once: int, chunks: int) -> float:
    """Microseconds of CPU per chunk of `at_once` streams, of which four have a chunk in each frame."""
    clients = [inside.client() for _ in range(at_once)]
    for client in clients:
        client.receive(inside.request(1024, True))
    while sum(len(worker.streams) for worker in inside.workers) < at_once:  # noqa: ASYNC110 - once
        await asyncio.sleep(0)
    frames = list(_frames(inside, chunks))
    begin_s, others_s = time.thread_time(), Peer.spent_s
    for worker, frame in frames:
        worker.answer(frame)
        await asyncio.sleep(0)
    used_s = time.thread_time() - begin_s - (Peer.spent_s - others_s)
    for client in clients:
        client.protocol.connection_lost(None)
    for worker in inside.workers:
        worker.streams.clear()
    await asyncio.sleep(0.01)
    return used_s / (len(frames) * 4) * 1e6


def _frames(inside: Inside, chunks: int) -> Iterator[tuple[Worker, bytes]]:
    for number in range(chunks // 4):
        worker = inside.workers[number % len(inside.workers)]
        streams = worker.streams
        at = number // len(inside.workers) * 4
        yield worker, worker.chunks([streams[(at + i) % len(streams)] for i in range(4)])


async def _best(measure: Callable[[], Awaitable[float]], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        gc.collect()
        found.append(await measure())
    return min(found)


async def _main(repeats: int) -> None:
    inside = Inside()
    await inside.start()
    for label, num_bytes, at_once in (("8 KB", 8192, 1), ("8 KB, 16 at once", 8192, 16), ("48 KB", 49152, 1)):
        value = await _best(lambda b=num_bytes, a=at_once: whole(inside, b, a, 64), repeats)  # type: ignore[misc]
        print(f"{value:7.1f} us per request, {label}")
    print(f"{await _best(lambda: streamed(inside, 64, 800), repeats):7.2f} us per streamed chunk")
    await inside.app.sessions.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.router.inside", description=__doc__)
    parser.add_argument("--repeats", type=int, default=60, help="runs, of which the best counts")
    given = parser.parse_args()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(given.repeats))
