"""A worker as a rebalancer meets it: a lease, telemetry on a PUB socket, and a gRPC server that writes down."""

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import zmq

from dualmap_service.registry import Lease
from dualmap_service.store import Store
from dualmap_wire.telemetry import QUEUE_TOPIC, QueuedReport, QueueReport, Registration, encode_report
from dualmap_wire.v1.worker_pb2 import MigrateReply, MigrateRequest
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlServicer, add_WorkerControlServicer_to_server

POOL = "test"


def queued(request_id: str, waited_s: float = 0.0, own_s: float = 2.0, **rest: Any) -> QueuedReport:
    facts = {"slo_s": 5.0, "prompt_tokens": 1000, **rest}
    return QueuedReport(request_id=request_id, waited_s=waited_s, own_s=own_s, **facts)


def hot_queue(backup: str, num: int = 4) -> tuple[QueuedReport, ...]:
    """More than an SLO of work; elsewhere each request takes 1 s."""
    return tuple(queued(f"r{i}", backup=backup) for i in range(num))


class RecordingWorker(WorkerControlServicer):
    """`async with` starts it; `report` holds what it says, ten times a second unless `silent`."""

    def __init__(self, store: Store, name: str, generation: int = 1) -> None:
        self.name = name
        self.store = store
        self.calls: list[MigrateRequest] = []
        self.called = asyncio.Event()
        self.answer = asyncio.Event()
        """Cleared: Migrate does not answer."""
        self.answer.set()
        self.fenced_off = False
        self.late: set[str] = set()
        """Requests that had started when Migrate came."""
        self.silent = False
        self.seq = 0
        self.report = QueueReport(
            instance=name,
            pool=POOL,
            generation=generation,
            state="active",
            speed=(0.0, 0.001, 0.0),
            fit_samples=10,
            fit_residual=0.01,
            bytes_per_token=4.0,
            busy_s=0.0,
            held=False,
            queued_total=0,
            queued=(),
        )

    def say(self, **changes: Any) -> None:
        """Publish a changed report at once, with the next sequence number."""
        fields = {name: getattr(self.report, name) for name in QueueReport.__struct_fields__}
        self.report = QueueReport(**{**fields, **changes})
        if "queued" in changes:
            self.report = QueueReport(
                **{**fields, **changes, "queued_total": len(changes["queued"])},
            )
        self.publish()

    def publish(self) -> None:
        self.seq += 1
        self.send([QUEUE_TOPIC, self.seq.to_bytes(8, "big"), encode_report(self.report)])

    def send(self, frames: list[bytes]) -> None:
        self._socket.send_multipart(frames)

    async def Migrate(self, request: MigrateRequest, context: Any) -> MigrateReply:  # noqa: N802 - gRPC's name
        self.calls.append(request)
        self.called.set()
        await self.answer.wait()
        if self.fenced_off:
            return MigrateReply(fenced_off=True)
        return MigrateReply(moved=[m.request_id for m in request.moves if m.request_id not in self.late])

    def registration(self) -> Registration:
        return Registration(
            instance=self.name,
            pool=POOL,
            model="m",
            grpc_address=self.grpc_address,
            telemetry_address=self.telemetry_address,
            generation=self.report.generation,
            state=self.report.state,
        )

    async def __aenter__(self) -> Self:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind("tcp://127.0.0.1:*")
        self.telemetry_address = self._socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        self._server = grpc.aio.server()
        add_WorkerControlServicer_to_server(self, self._server)
        self.grpc_address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        self.lease = Lease(self.store, self.registration())
        assert await self.lease.renew()
        self._tasks = [asyncio.create_task(self._talk()), asyncio.create_task(self._renew())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answer.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop(None)
        self._socket.close()
        self._context.term()

    async def _talk(self) -> None:
        while True:
            if not self.silent:
                self.publish()
            await asyncio.sleep(0.1)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.lease.renew()
