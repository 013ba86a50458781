"""Telemetry under CURVE: who is on the list hears it, nobody else does, and no stranger passes for a worker."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
import zmq
from click.testing import CliRunner

from dualmap_cli.commands.curve import curve
from dualmap_service.curve import CurveListener, CurvePublishing, InTheClear, Listener, Publishing
from dualmap_wire.telemetry import QUEUE_TOPIC, QueueReport
from dualmap_worker.telemetry import Publisher

from ...waiting import eventually

REPORT = QueueReport(
    instance="w",
    pool="p",
    generation=1,
    state="active",
    speed=(0.0, 0.0, 0.0),
    fit_samples=0,
    fit_residual=0.0,
    bytes_per_token=4.0,
    busy_s=0.0,
    held=False,
    queued_total=0,
    queued=(),
)


@dataclass(frozen=True)
class Keys:
    """Of workers, of a rebalancer that may listen, and of a stranger."""

    folder: Path
    clients: Path

    def secret(self, name: str) -> str:
        return str(self.folder / f"{name}.key_secret")

    def public(self, name: str) -> str:
        return str(self.folder / f"{name}.key")

    def publishing(self, name: str = "workers") -> CurvePublishing:
        return CurvePublishing(self.secret(name), str(self.clients))

    def listener(self, name: str, workers: str = "workers") -> CurveListener:
        return CurveListener(self.secret(name), self.public(workers))

    def admit(self, name: str) -> None:
        shutil.copy(self.public(name), self.clients)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys", tmp_path / "clients")
    for name in ("workers", "rebalancers", "stranger"):
        result = CliRunner().invoke(curve, ["new", name, "--dir", str(made.folder)])
        assert result.exit_code == 0, result.output
    made.clients.mkdir()
    made.admit("rebalancers")
    return made


@asynccontextmanager
async def published(access: Publishing) -> AsyncIterator[int]:
    """The port of a publisher that reports again and again."""
    publisher = Publisher("127.0.0.1", 0, access)
    task = asyncio.get_running_loop().create_task(publisher.run(lambda: REPORT, 0.02))
    try:
        yield publisher.port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        publisher.close()


class Ear:
    """A subscriber."""

    def __init__(self, access: Listener, port: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SUBSCRIBE, QUEUE_TOPIC)
        access.introduce(self._socket)
        self._monitor = self._socket.get_monitor_socket()
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def hears(self) -> bool:
        try:
            return bool(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False

    def refused(self) -> bool:
        """Whether a connection was made and did not get through its handshake."""
        while self._monitor.poll(0):
            event = int.from_bytes(self._monitor.recv_multipart()[0][:2], "little")
            if event & (
                zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                | zmq.EVENT_DISCONNECTED
            ):
                return True
        return False

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()


def listen(publishing: Publishing, access: Listener) -> tuple[bool, bool]:
    """(heard, refused), whichever comes first, for one listener."""

    async def body() -> tuple[bool, bool]:
        async with published(publishing) as port:
            ear, found = Ear(access, port), (False, False)
            try:
                while not any(found):
                    found = (ear.hears(), ear.refused())
                    await asyncio.sleep(0.01)
            finally:
                ear.close()
            return found

    return uvloop.run(asyncio.wait_for(body(), 20.0))


def test_who_is_on_the_list_hears(keys: Keys) -> None:
    assert listen(keys.publishing(), keys.listener("rebalancers")) == (True, False)
    assert listen(InTheClear(), InTheClear()) == (True, False)


@pytest.mark.parametrize("wrong", ["key", "no key", "worker", "plain worker"])
def test_who_does_not_belong_hears_nothing(keys: Keys, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    publishing, access = {
        "key": (keys.publishing(), keys.listener("stranger")),
        "no key": (keys.publishing(), InTheClear()),
        # Telemetry of somebody who is no worker is not believed.
        "worker": (keys.publishing("stranger"), keys.listener("rebalancers")),
        "plain worker": (InTheClear(), keys.listener("rebalancers")),
    }[wrong]
    assert listen(publishing, access) == (False, True)
    assert [r.message for r in caplog.records] == (["telemetry.refused"] if wrong == "key" else [])


def test_the_list_may_grow_while_workers_run(keys: Keys) -> None:
    async def body() -> None:
        async with published(keys.publishing()) as port:
            before = Ear(keys.listener("stranger"), port)
            await eventually(before.refused)
            before.close()
            keys.admit("stranger")
            after = Ear(keys.listener("stranger"), port)
            await eventually(after.hears)
            after.close()

    uvloop.run(body())


def test_keys_are_written_once_and_kept_secret(keys: Keys) -> None:
    again = CliRunner().invoke(curve, ["new", "workers", "--dir", str(keys.folder)])
    assert again.exit_code == 1
    assert "is there already" in again.output
    assert Path(keys.secret("workers")).stat().st_mode & 0o777 == 0o600
    assert "secret" not in Path(keys.public("workers")).read_text().lower()
    assert CliRunner().invoke(curve, ["new", "../x"]).exit_code == 2
