"""Replays timed requests open-loop: what is due is sent, whatever became of what was sent before."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass

from dualmap_cli.load.exchange import Exchange, open_session
from dualmap_cli.load.options import LoadError, LoadOptions, check_target
from dualmap_cli.load.progress import Progress, ProgressTracker
from dualmap_cli.load.record import RequestRecord
from dualmap_cli.load.report import LoadReport, make_report
from dualmap_sim.workloads import TimedRequest

OnProgress = Callable[[Progress], None]

_RETRIED = frozenset(("connect", "disconnected", "cut", "http_503"))
"""What a client blames on the router that it asked, rather than on its request."""
_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A run's records, in order of sending, and their report."""

    records: list[RequestRecord]
    report: LoadReport


async def run_load(
    requests: Iterable[TimedRequest],
    targets: Sequence[str],
    options: LoadOptions | None = None,
    on_progress: OnProgress | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Replay requests against base URLs, round-robin; returns when the last is over.

    Setting `stop` ends the run early: nothing more is sent, and what is in flight is cancelled and reported
    as unfinished. Cancelling the call cancels all requests.
    """
    options = options or LoadOptions()
    urls = [check_target(target) for target in targets]
    if not urls:
        raise LoadError("at least one URL is needed")
    total = len(requests) if isinstance(requests, Sized) else None
    tracker = ProgressTracker(total, options.time_scale)
    stop = stop or asyncio.Event()
    async with open_session(options) as http:
        replay = _Replay(Exchange(http, options), urls, options, tracker)
        reporter = asyncio.create_task(_report_progress(tracker, options, on_progress))
        sender = asyncio.create_task(replay.run(requests))
        stopper = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((sender, stopper), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopper, reporter, sender):
                task.cancel()
            await asyncio.gather(stopper, reporter, return_exceptions=True)
            with suppress(asyncio.CancelledError):
                await sender
    if on_progress is not None:
        on_progress(tracker.snapshot())
    return LoadResult(replay.records, make_report(replay.records, replay.held_back))


class _Replay:
    """The sending loop and the requests it has in flight."""

    def __init__(
        self, exchange: Exchange, urls: Sequence[str], options: LoadOptions, tracker: ProgressTracker
    ) -> None:
        self._exchange = exchange
        self._urls = urls
        self._options = options
        self._tracker = tracker
        self._room = asyncio.Semaphore(options.max_in_flight)
        self.records: list[RequestRecord] = []
        self.held_back = 0

    async def run(self, requests: Iterable[TimedRequest]) -> None:
        options, scale = self._options, self._options.time_scale
        started = time.perf_counter()
        async with asyncio.TaskGroup() as in_flight:
            for request in requests:
                # Before the wait: a long prompt's text must not delay its own sending.
                body = request.body(options.model, stream=options.stream, extra=options.extra_body)
                wait_s = request.at_s / scale - (time.perf_counter() - started)
                # Even when late, give the answers' reading a turn.
                await asyncio.sleep(max(0.0, wait_s))
                self.held_back += self._room.locked()
                await self._room.acquire()
                record = RequestRecord(
                    request_id=f"{options.run_id}-{request.request_id}",
                    target=self._urls[len(self.records) % len(self._urls)],
                    due_s=request.at_s,
                    sent_s=(time.perf_counter() - started) * scale,
                    slo_s=options.slo.limit_s(request),
                    session=request.session,
                    tenant=request.tenant,
                    input_tokens=request.input_tokens,
                )
                self.records.append(record)
                self._tracker.sent += 1
                in_flight.create_task(self._send(request, body, len(self.records) - 1))

    async def _send(self, request: TimedRequest, body: bytes, number: int) -> None:
        sent_at = time.perf_counter()
        record = self.records[number]
        try:
            await self._exchange.run(request, body, record, sent_at)
            while record.error in _RETRIED and len(record.failed_tries) < self._options.retries:
                failed_s = record.sent_s + (time.perf_counter() - sent_at) * self._options.time_scale
                num_failed = len(record.failed_tries)
                await asyncio.sleep(_RETRY_S * 2**num_failed)
                next_url = self._urls[(number + num_failed + 1) % len(self._urls)]
                record = self.records[number] = record.asked_again(next_url, failed_s)
                await self._exchange.run(request, body, record, sent_at)
        finally:
            self._room.release()
            if record.finished:
                self._tracker.finish(record)


async def _report_progress(
    tracker: ProgressTracker, options: LoadOptions, on_progress: OnProgress | None
) -> None:
    while on_progress is not None:
        await asyncio.sleep(options.progress_interval_s)
        on_progress(tracker.snapshot())
