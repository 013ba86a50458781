"""The worker put together: the one place where its parts meet."""

import asyncio
import logging
import socket
import time

import grpc
import msgspec
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dualmap.admission import Admission
from dualmap_service.addresses import advertised_host
from dualmap_service.grpc_access import grpc_access
from dualmap_service.lifecycle import Background, ServiceFailedError, every, wait_for
from dualmap_service.registry import Lease
from dualmap_service.store import Store
from dualmap_service.tracing import Tracing
from dualmap_wire.redis_keys import HEARTBEAT_S
from dualmap_wire.telemetry import QueueReport, Registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1 import worker_pb2_grpc
from dualmap_worker.cache_watch import CacheWatch
from dualmap_worker.engine import Engine
from dualmap_worker.engine_launch import EngineLaunch, resolve
from dualmap_worker.engine_watch import NAMES_POLL_S, POLL_S, EngineWatch
from dualmap_worker.presence import SERVICES, Presence, new_generation
from dualmap_worker.relay import Requests
from dualmap_worker.servicers import ControlServicer, DataServicer
from dualmap_worker.settings import WorkerSettings
from dualmap_worker.telemetry import Publisher, queue_report
from dualmap_worker.trace import FlowTraces

log = logging.getLogger(__name__)

_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


class WorkerApp:
    """One worker process beside one engine."""

    def __init__(
        self, settings: WorkerSettings, stop: asyncio.Event, launch: EngineLaunch | None = None
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._background = Background(stop)
        launch = launch or resolve(settings)
        self._engine = Engine(
            launch.url,
            launch.api_key,
            settings.first_byte_timeout_s,
            # What needs no prefill shares the pool with the running requests.
            settings.max_running * 2 + 16,
        )
        self._admission = Admission(
            settings.order_rule(),
            settings.prefill_ahead_tokens,
            settings.max_running,
            settings.hold_kv_use,
            settings.preempt_rule(),
            settings.step_tokens,
        )
        self._publisher = Publisher(settings.host, settings.telemetry_port, settings.publishing())
        instance = settings.instance or socket.gethostname()
        self._tracing = Tracing("worker", instance, settings.trace_endpoint, settings.trace_share)
        self._presence = Presence()
        self._cache = CacheWatch(launch, self._presence)
        self._requests = Requests(
            self._engine,
            self._admission,
            settings.max_queued,
            self._publisher.changed,
            FlowTraces(self._tracing, instance),
            self._cache.holdings,
        )
        self._data = DataServicer(
            self._requests, settings.pool, settings.max_outbox_bytes, settings.coalesce_ms / 1e3
        )
        self._server = grpc.aio.server(options=_GRPC_OPTIONS)
        self._watch = EngineWatch(
            settings, launch, self._engine, self._admission, self._requests, self._cache, self._presence, stop
        )

    # Life

    async def run(self) -> None:
        """Serve until told to stop, then hand back what waits and finish what runs."""
        settings = self._settings
        await self._engine.open()
        supervisor = self._watch.supervisor
        self._background.start(supervisor.run(self._watch.lost), "supervisor")
        try:
            registration = await self._register(await self._listen())
            if registration is None:
                return
            store = Store(settings, f"dualmap-worker-{registration.instance}")
            if not await store.start():
                log.warning("worker.starts_without_store")
            lease = self._presence.lease = Lease(store, registration)
            self._background.start(every(HEARTBEAT_S, self._renew), "lease")
            self._background.start(every(POLL_S, self._watch.poll), "engine")
            self._background.start(every(NAMES_POLL_S, self._watch.poll_names), "names")
            self._cache.start(self._background, lease, store)
            self._background.start(self._publisher.run(self._report, settings.report_period_s), "telemetry")
            await self._presence.set_serving(True)
            log.info("worker.ready", extra=msgspec.structs.asdict(registration))
            await self._stop.wait()
            await self._drain()
            if not await wait_for(self._requests.idle, settings.drain_s):
                log.warning("worker.drain_cut", extra={"running": len(self._requests)})
            await lease.drop()
            await store.close()
        finally:
            self._requests.close()
            await self._server.stop(0.5)
            try:
                # Before what the loops use: a poll of a closed client would look like a fault.
                await self._background.close()
            finally:
                self._publisher.close()
                self._cache.close()
                await self._engine.close()
                await supervisor.close()
                await asyncio.to_thread(self._tracing.close)
        log.info("worker.stopped")

    async def _listen(self) -> int:
        """Start the gRPC server; returns its port."""
        settings = self._settings
        worker_pb2_grpc.add_WorkerDataServicer_to_server(self._data, self._server)
        control = ControlServicer(self._requests, self._describe, self._list_queue, self._drain)
        worker_pb2_grpc.add_WorkerControlServicer_to_server(control, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._presence.health, self._server)
        reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME), self._server)
        await self._presence.set_serving(False)
        try:
            port = grpc_access(settings).listen(self._server, f"{settings.host}:{settings.grpc_port}")
        except RuntimeError as exc:
            raise ServiceFailedError(f"cannot listen on {settings.host}:{settings.grpc_port}: {exc}") from exc
        await self._server.start()
        return port

    async def _register(self, grpc_port: int) -> Registration | None:
        """Wait for the engine and ask it who it is; None when told to stop meanwhile."""
        settings = self._settings
        met = await self._watch.meet()
        if met is None:
            return None
        info, kv_tokens = met
        host = advertised_host(settings.advertise_host, settings.host, settings.redis_place())
        return Registration(
            instance=settings.instance or f"{socket.gethostname()}-{grpc_port}",
            pool=settings.pool,
            model=settings.model or info.model,
            grpc_address=f"{host}:{grpc_port}",
            telemetry_address=f"tcp://{host}:{self._publisher.port}",
            generation=new_generation(),
            weight=settings.weight,
            kv_tokens=int(settings.kv_tokens) or kv_tokens,
            adapters=info.adapters,
            max_model_len=info.max_model_len,
            aliases=self._watch.aliases(info),
        )

    async def _drain(self) -> int:
        """Take nothing more, and give back what waits."""
        await self._presence.leave("draining")
        handed_back = self._requests.drain()
        log.info("worker.draining", extra={"handed_back": handed_back, "running": len(self._requests)})
        return handed_back

    async def _renew(self) -> None:
        assert self._presence.lease is not None
        await self._presence.lease.renew()
        if self._presence.lease.taken:
            name = self._presence.lease.registration.instance
            raise ServiceFailedError(
                f"another worker that started later is registered as {name!r}: set another DUALMAP_WORKER_INSTANCE"
            )

    # What others see

    def _report(self) -> QueueReport:
        assert self._presence.lease is not None
        registration = self._presence.lease.registration
        return queue_report(
            self._admission,
            self._requests,
            asyncio.get_running_loop().time(),
            registration.instance,
            registration.pool,
            registration.generation,
            registration.state,
            registration.bytes_per_token,
            self._cache.state,
        )

    def _describe(self) -> pb.DescribeReply:
        reply = pb.DescribeReply(
            queued=len(self._admission.queue),
            running=len(self._requests) - len(self._admission.queue),
            sessions=len(self._data.outboxes),
            buffered_bytes=sum(outbox.buffered_bytes for outbox in self._data.outboxes),
            noted=self._cache.num_open,
            engine_version=self._watch.version,
            engine_lacks=[lack.name for lack in self._watch.lacks],
            clock_s=time.time(),
        )
        if self._presence.lease is not None:
            registration = self._presence.lease.registration
            reply.instance, reply.pool, reply.model = (
                registration.instance,
                registration.pool,
                registration.model,
            )
            reply.generation, reply.state = registration.generation, registration.state
        return reply

    def _list_queue(self) -> pb.ListQueueReply:
        now_s = asyncio.get_running_loop().time()
        reply = pb.ListQueueReply()
        for ordered in self._admission.ordered(now_s):
            flow = self._requests.flow(ordered.request.request_id)
            reply.entries.add(
                request_id=ordered.request.request_id,
                waited_s=now_s - ordered.request.arrival_s,
                own_s=ordered.request.own_s,
                feasible=ordered.feasible,
                backup=flow.submit.placement.backup if flow is not None else "",
            )
        return reply


async def run(settings: WorkerSettings, stop: asyncio.Event, launch: EngineLaunch | None = None) -> None:
    """Run one worker; `DUALMAP_WORKER_*` in the environment are its settings."""
    await WorkerApp(settings, stop, launch).run()
