"""A worker that starts its engine: what dies or hangs comes back, and nothing outlives the worker."""

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dualmap_service.child import Child, start_child
from dualmap_service.lifecycle import ServiceFailedError
from dualmap_service.registry import MembershipWatch
from dualmap_service.store import Store
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.telemetry import Registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.app import WorkerApp
from dualmap_worker.engine_output import EngineOutput
from dualmap_worker.outbox import Outbox
from dualmap_worker.settings import WorkerSettings

from ...waiting import eventually

ENGINE = """
import http.server, os, signal, subprocess, sys, time
core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b'{"data": [{"id": "m"}]}' if self.path == "/v1/models" else b""
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        if self.path == "/v1/silent":
            time.sleep(600)
        self.do_GET()
    def log_message(self, *_):
        pass
print("engine", os.getpid(), core.pid, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""Serves, says its process ids, and has a second process as vLLM's server has its engine core."""
COMMAND = shlex.join([sys.executable, "-c", ENGINE, "{port}"])


class Supervised:
    """A worker in this process with an engine of its own."""

    def __init__(
        self, app: WorkerApp, running: asyncio.Task[None], log: Path, watch: MembershipWatch
    ) -> None:
        self.app = app
        self.running = running
        self._log = log
        self._watch = watch

    def engine(self, start: int) -> list[psutil.Process]:
        """The processes of the engine's nth start, from 0; none before it."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [psutil.Process(int(pid)) for pid in lines[start].split()[1:]] if len(lines) > start else []

    async def registered(self, fits: Callable[[Registration], bool]) -> Registration | None:
        """The registration, if it is such a one."""
        await self._watch.poll()
        member = self._watch.current.members.get("w")
        return member.registration if member is not None and fits(member.registration) else None

    async def active(self, after: int = 0) -> Registration:
        """The registration of a generation behind `after`, once it takes requests."""
        found: Registration = await eventually(
            lambda: self.registered(lambda r: r.state == "active" and r.generation > after)
        )
        return found

    def submit(self, stream: int, path: str) -> Outbox:
        """Send a request to the engine; returns where its events are."""
        outbox = Outbox(1 << 20, 0.0)
        submit = pb.Submit(stream=stream, request_id=f"r{stream}", method="POST", path=path, body=b"{}")
        self.app._requests.submit(submit, "router", outbox)
        return outbox


@asynccontextmanager
async def supervised(
    store: EmbeddedStore, shared: Store, tmp_path: Path, **fields: Any
) -> AsyncIterator[Supervised]:
    """A worker that starts ENGINE; afterwards none of its processes is left."""
    log = tmp_path / "engine.log"
    settings = WorkerSettings(
        redis_url=store.url, instance="w", drain_s=1.0, engine="command", engine_args=COMMAND,
        engine_log=str(log), **{"engine_restart_s": 0.2, **fields},
    )  # fmt: skip
    stop = asyncio.Event()
    app = WorkerApp(settings, stop)
    worker = Supervised(app, asyncio.create_task(app.run()), log, MembershipWatch(shared, settings.pool))
    try:
        yield worker
    finally:
        stop.set()
        await worker.running
    assert not alive(psutil.Process().children(recursive=True), "time.sleep(600)")


def alive(processes: list[psutil.Process], running: str = "") -> list[psutil.Process]:
    """Those that run, and run something that has these words in its command line."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE and running in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


async def test_an_engine_that_dies_comes_back_as_a_new_generation(
    store: EmbeddedStore, shared: Store, tmp_path: Path
) -> None:
    async with supervised(store, shared, tmp_path) as worker:
        first = await worker.active()
        server, core = worker.engine(0)
        unanswered = worker.submit(1, "/v1/silent")
        await asyncio.sleep(0.2)
        assert not unanswered._events
        server.kill()
        await eventually(lambda: unanswered._events)
        [event] = unanswered._events
        assert (event.failed.kind, event.failed.begun) == (pb.Failed.ENGINE_LOST, True)
        await eventually(lambda: worker.registered(lambda r: r.state == "unready"))
        await worker.active(after=first.generation)
        assert not alive([server, core])
        assert len(alive(worker.engine(1))) == 2
        answered = worker.submit(2, "/v1/x")
        await eventually(lambda: [e.WhichOneof("what") for e in answered._events][-1:] == ["end"])


async def test_what_waits_is_handed_back_when_the_engine_dies_and_not_when_it_is_missed(
    store: EmbeddedStore, shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualmap_worker.app.POLL_S", 600.0)
    async with supervised(store, shared, tmp_path, engine_restart_s=30.0, max_running=1) as worker:
        await worker.active()
        outbox = Outbox(1 << 20, 0.0)
        for stream in (1, 2):
            submit = pb.Submit(
                stream=stream,
                request_id=f"r{stream}",
                method="POST",
                path="/v1/silent",
                queued=True,
                streamed=True,
            )
            worker.app._requests.submit(submit, "router", outbox)
        worker.engine(0)[0].kill()
        await eventually(lambda: len(outbox._events) == 2)
        assert {event.failed.kind for event in outbox._events} == {pb.Failed.ENGINE_LOST}


async def test_an_engine_that_hangs_is_killed_and_started_again(
    store: EmbeddedStore, shared: Store, tmp_path: Path
) -> None:
    async with supervised(store, shared, tmp_path, engine_hang_s=1.0) as worker:
        first = await worker.active()
        old = worker.engine(0)
        old[0].suspend()
        await worker.active(after=first.generation)
        assert not alive(old)


async def test_an_engine_that_dies_again_and_again_is_started_ever_more_rarely(
    store: EmbeddedStore, shared: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    generation = 0
    async with supervised(store, shared, tmp_path, engine_restart_s=0.05) as worker:
        for number in range(3):
            generation = (await worker.active(after=generation)).generation
            worker.engine(number)[0].kill()
        await worker.active(after=generation)
    pauses = [record.restart_in_s for record in caplog.records if record.getMessage() == "engine.ended"]
    bounds = [(0.025 * 2**number, 0.05 * 2**number) for number in range(3)]
    # They are logged to a hundredth of a second.
    assert all(low - 0.006 <= s <= high + 0.006 for s, (low, high) in zip(pauses, bounds, strict=True)), (
        pauses
    )


async def test_a_command_that_never_serves_ends_the_worker_with_what_it_said(store: EmbeddedStore) -> None:
    code = "import sys; print('no such flag: --wrong'); sys.exit(2)"
    settings = WorkerSettings(
        redis_url=store.url, engine="command", engine_restart_s=0.05,
        engine_args=shlex.join([sys.executable, "-c", code]),
    )  # fmt: skip
    with pytest.raises(ServiceFailedError, match=r"(?s)3 starts.*status 2.*no such flag: --wrong"):
        await WorkerApp(settings, asyncio.Event()).run()


async def test_an_engine_that_is_not_ready_in_time_ends_the_worker(store: EmbeddedStore) -> None:
    code = "import time; print('loading', flush=True); time.sleep(600)"
    settings = WorkerSettings(
        redis_url=store.url, engine="command", engine_wait_s=1.0,
        engine_args=shlex.join([sys.executable, "-c", code]),
    )  # fmt: skip
    with pytest.raises(ServiceFailedError, match=r"(?s)not ready within 1 s.*loading"):
        await WorkerApp(settings, asyncio.Event()).run()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailedError, match="cannot write --engine-log"):
        EngineOutput(f"{tmp_path}/no/log")


@asynccontextmanager
async def process(store: EmbeddedStore, tmp_path: Path) -> AsyncIterator[tuple[Child, list[psutil.Process]]]:
    """`dualmap worker` with the simulated engine behind --, ready; and every process below it."""
    argv = [
        sys.executable, "-m", "dualmap_cli", "worker", "--redis-url", store.url, "--engine", "command", "--",
        sys.executable, "-m", "dualmap_cli", "sim-engine", "--port", "{port}",
    ]  # fmt: skip
    child = start_child(argv, "worker", tmp_path / "log")
    try:
        await eventually(lambda: "worker.ready" in child.log_tail(1 << 20), timeout_s=30.0)
        yield child, psutil.Process(child.pid).children(recursive=True)
    finally:
        await child.stop()


async def test_a_killed_worker_leaves_no_process(store: EmbeddedStore, tmp_path: Path) -> None:
    async with process(store, tmp_path) as (child, below):
        assert len(alive(below, "sim-engine")) == 2  # the keeper and the engine
        child.process.kill()
        await eventually(lambda: not alive(below))


async def test_sigterm_stops_worker_and_engine(store: EmbeddedStore, tmp_path: Path) -> None:
    async with process(store, tmp_path) as (child, below):
        child.process.send_signal(signal.SIGTERM)
        assert await child.wait(15.0) == 0
        assert not alive(below)
        log = child.log_tail(1 << 20)
        # The engine's own output is among the worker's.
        assert any("engines" in line for line in map(json.loads, log.splitlines()))


async def test_a_worker_that_is_told_to_stop_while_its_engine_loads(
    store: EmbeddedStore, shared: Store, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    code = "import time; time.sleep(600)"
    settings = WorkerSettings(
        redis_url=store.url, engine="command", engine_args=shlex.join([sys.executable, "-c", code])
    )
    running = asyncio.create_task(WorkerApp(settings, stop).run())
    await eventually(lambda: alive(psutil.Process().children(recursive=True), code))
    stop.set()
    await asyncio.wait_for(running, 10.0)
    assert not alive(psutil.Process().children(recursive=True), code)
