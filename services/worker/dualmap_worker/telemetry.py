"""Telemetry: the queue report, ten times a second and soon after a change."""

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from dualmap.admission import Admission
from dualmap_service.curve import Publishing
from dualmap_wire.telemetry import QUEUE_TOPIC, QueuedReport, QueueReport, RunningReport, encode_report
from dualmap_worker.ownership import KvState
from dualmap_worker.relay import Requests

log = logging.getLogger(__name__)

_MAX_QUEUED_REPORTED = 512
_MIN_GAP_S = 0.02
_REST = 9.0
"""Of what reporting took, before the next: a tenth of the time at most."""


class Publisher:
    """A PUB socket. A slow or absent subscriber loses messages, never slows the worker."""

    def __init__(self, host: str, port: int, access: Publishing) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._unguard = access.guard(self._context, self._socket)
        if port:
            self._socket.bind(f"tcp://{host}:{port}")
            self.port = port
        else:
            self.port = self._socket.bind_to_random_port(f"tcp://{host}")
        self._sequence = 0
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """The queue changed: report soon."""
        self._changed.set()

    async def run(self, report: Callable[[], QueueReport], period_s: float) -> None:
        """Publish for ever."""
        while True:
            self._changed.clear()
            # Of this thread's own time: a machine that is suspended in between must not silence it for nine times that.
            began_s = time.thread_time()
            self.publish(report())
            # The longer a queue is the longer takes its report: never so much that the requests in it wait for that.
            gap_s = max(_MIN_GAP_S, (time.thread_time() - began_s) * _REST)
            await asyncio.sleep(gap_s)
            try:
                async with asyncio.timeout(max(period_s - gap_s, 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def publish(self, report: QueueReport) -> None:
        """Send one report."""
        frames = [QUEUE_TOPIC, self._sequence.to_bytes(8, "big"), encode_report(report)]
        self._sequence += 1
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            log.debug("telemetry.dropped")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._unguard()
        self._context.term()


def queue_report(
    admission: Admission, requests: Requests, now_s: float, instance: str, pool: str, generation: int, state: str,
    bytes_per_token: float, kv: KvState,
) -> QueueReport:  # fmt: skip
    """What this worker knows now, as others should know it."""
    in_hand = admission.in_hand(now_s)
    speed = in_hand.speed
    queued = []
    for ordered in admission.ordered(now_s)[:_MAX_QUEUED_REPORTED]:
        flow = requests.flow(ordered.request.request_id)
        if flow is None:
            continue
        job, placement = flow.job, flow.submit.placement
        queued.append(
            QueuedReport(
                request_id=job.request_id,
                waited_s=now_s - job.arrival_s,
                own_s=ordered.request.own_s,
                slo_s=job.slo_s,
                prompt_tokens=job.prompt_tokens,
                cached_tokens=job.cached_tokens,
                priority=job.priority,
                feasible=job.feasible,
                # Elsewhere a preempted request would find nothing of what it has computed here.
                movable=placement.moves == 0 and job.preemptions == 0,
                backup=placement.backup,
                backup_cached_tokens=placement.backup_cached_tokens,
                tenant=job.tenant,
            )
        )
    running = None
    if admission.line:
        head = requests.flow(admission.line[0].request_id)
        if head is not None:
            running = RunningReport(
                router=head.router,
                charge_id=head.submit.placement.charge_id,
                elapsed_s=now_s - admission.head_since_s(),
                cost_s=head.job.own_s(speed),
                feasible=head.job.feasible,
                gives_way_s=next(
                    (r.stop_s for r in in_hand.line.giving_way if r.queued.request_id == head.job.request_id),
                    None,
                ),
            )
    return QueueReport(
        instance=instance,
        pool=pool,
        generation=generation,
        state=state,
        speed=(speed.a_s, speed.b_s_per_token, speed.c_s_per_token2),
        fit_samples=admission.tracker.fit.num_samples,
        fit_residual=admission.tracker.fit.residual,
        bytes_per_token=bytes_per_token,
        busy_s=in_hand.busy_s,
        held=admission.held,
        queued_total=len(admission.queue),
        queued=tuple(queued),
        running=running,
        engine_running=admission.load.running,
        engine_waiting=admission.load.waiting,
        kv_use=admission.load.kv_use,
        kv_events=kv.followed,
        kv_events_lost=kv.num_lost,
        owned_chunks=kv.num_chunks,
        preemptible_s=in_hand.line.giving_way_s,
        preemptions=admission.preemptions,
        tenants_left_s=_left_s(admission, queued),
    )


def _left_s(admission: Admission, queued: list[QueuedReport]) -> dict[str, float]:
    """Of those in the report, so that its bound holds for this too."""
    left_s = admission.deficits.left_s
    return {request.tenant: left_s[request.tenant] for request in queued if request.tenant in left_s}
