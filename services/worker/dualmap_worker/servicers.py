"""The worker's gRPC side: sessions of routers, and the control calls of rebalancer and operators."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlServicer, WorkerDataServicer
from dualmap_worker.outbox import Outbox
from dualmap_worker.relay import Requests

log = logging.getLogger(__name__)


class DataServicer(WorkerDataServicer):
    """One session per router."""

    def __init__(self, requests: Requests, pool: str, max_outbox_bytes: int, coalesce_s: float) -> None:
        self._requests = requests
        self._pool = pool
        self._max_outbox_bytes = max_outbox_bytes
        self._coalesce_s = coalesce_s
        self.outboxes: set[Outbox] = set()

    async def Session(  # type: ignore[override]  # noqa: N802 - gRPC's name, in its read/write style
        self,
        request_iterator: AsyncIterator[pb.RouterFrame],
        context: "grpc.aio.ServicerContext[pb.RouterFrame, pb.WorkerFrame]",
    ) -> None:
        """Take requests and send answers until the router goes away."""
        first = await anext(request_iterator, None)
        if first is None or not first.hello.router:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first frame must say hello")
            return
        if first.hello.pool != self._pool:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"this worker serves pool {self._pool!r}"
            )
            return
        router = first.hello.router
        # The answer to hello: the router knows that the session works both ways.
        await context.write(pb.WorkerFrame())
        outbox = Outbox(self._max_outbox_bytes, self._coalesce_s)
        self.outboxes.add(outbox)
        log.info("session.opened", extra={"router": router})
        writer = asyncio.get_running_loop().create_task(outbox.drain(context.write), name=f"outbox-{router}")
        reader = asyncio.get_running_loop().create_task(
            self._read(request_iterator, router, outbox), name=f"session-{router}"
        )
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            outbox.close()
            self.outboxes.discard(outbox)
            self._requests.cancel_all(outbox)
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            log.info("session.closed", extra={"router": router})

    async def _read(self, frames: AsyncIterator[pb.RouterFrame], router: str, outbox: Outbox) -> None:
        async for frame in frames:
            for submit in frame.submits:
                self._requests.submit(submit, router, outbox)
            for stream in frame.cancels:
                self._requests.cancel(outbox, stream)


class ControlServicer(WorkerControlServicer):
    """Migrate, Drain, Describe, ListQueue."""

    def __init__(
        self,
        requests: Requests,
        describe: Callable[[], pb.DescribeReply],
        queue: Callable[[], pb.ListQueueReply],
        drain: Callable[[], Awaitable[int]],
    ) -> None:
        self._requests = requests
        self._describe = describe
        self._queue = queue
        self._drain = drain
        self._fence = 0

    async def Migrate(  # noqa: N802
        self,
        request: pb.MigrateRequest,
        context: "grpc.aio.ServicerContext[pb.MigrateRequest, pb.MigrateReply]",
    ) -> pb.MigrateReply:
        """Move what still waits; an older leader than one obeyed before is ignored."""
        if request.fence < self._fence:
            return pb.MigrateReply(fenced_off=True)
        self._fence = request.fence
        moved = [
            move.request_id for move in request.moves if self._requests.move(move.request_id, move.target)
        ]
        if moved:
            log.info("queue.migrated", extra={"asked": len(request.moves), "moved": len(moved)})
            self._requests.pump()
        return pb.MigrateReply(moved=moved)

    async def Drain(  # noqa: N802
        self, request: pb.DrainRequest, context: "grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainReply]"
    ) -> pb.DrainReply:
        """Stop taking requests."""
        handed_back = await self._drain()
        return pb.DrainReply(handed_back=handed_back, running=len(self._requests))

    async def Describe(  # noqa: N802
        self,
        request: pb.DescribeRequest,
        context: "grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeReply]",
    ) -> pb.DescribeReply:
        """Who this is and what it holds."""
        return self._describe()

    async def ListQueue(  # noqa: N802
        self,
        request: pb.ListQueueRequest,
        context: "grpc.aio.ServicerContext[pb.ListQueueRequest, pb.ListQueueReply]",
    ) -> pb.ListQueueReply:
        """What waits, in serving order."""
        return self._queue()
