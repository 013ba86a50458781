"""What the tests of a system under load share: workloads, the replay with its text check, and both sides' books."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from dualmap_cli.leftovers import settle
from dualmap_cli.load import LoadOptions, LoadResult, RequestRecord, Slo, run_load
from dualmap_cli.stack import Stack
from dualmap_service.grpc_access import grpc_access
from dualmap_sim.engine.canonical import canonical_prompt
from dualmap_sim.engine.text import matches
from dualmap_sim.workloads import Span, TimedRequest, Traffic, make_workload
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

MODEL = "sim-model"

# Workloads


def prompts(
    name: str, rate_req_s: float, count: int, tokens: int, output_tokens: int = 8, seed: int = 1
) -> list[TimedRequest]:
    """Prompts of one length that share nothing; `name` makes their text and ids, so arrivals can be reused."""
    sizes = {"input_tokens": tokens, "sigma": 0.0}
    arrivals = make_workload("unique", Traffic(rate_req_s, count, seed=seed), sizes)
    return [
        replace(
            request,
            request_id=f"{name}-{index}",
            output_tokens=output_tokens,
            prompt=(Span(f"{name}.{index}", tokens),),
        )
        for index, request in enumerate(arrivals)
    ]


def with_headers(requests: Iterable[TimedRequest], **headers: str) -> list[TimedRequest]:
    """The same requests with more headers; `_` in a name is `-`."""
    more = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return [replace(request, headers=request.headers + more) for request in requests]


def says_its_own_answer(request: TimedRequest, text: str) -> bool:
    """Whether an answer is all of the answer to this prompt and nothing else."""
    body = msgspec.json.decode(request.body(MODEL))
    return matches(canonical_prompt(body), text, request.output_tokens)


# Load


async def replay(
    stack: Stack, requests: Sequence[TimedRequest], *, stream: bool = True, urls: Sequence[str] | None = None
) -> LoadResult:
    """Send a workload through the routers in the stack's time, and check every text."""
    scale = stack.options.time_scale
    options = LoadOptions(
        model=MODEL,
        stream=stream,
        time_scale=scale,
        timeout_s=90.0 * scale,
        slo=Slo(stack.options.slo_s),
        # Without it an answer ends where the simulated model likes.
        extra_body={"ignore_eos": True},
        check=says_its_own_answer,
    )
    return await run_load(requests, urls or stack.router_urls, options)


@dataclass
class Background:
    """A workload that goes on while a test does something to the system."""

    task: "asyncio.Task[list[LoadResult]]"

    async def records(self) -> list[RequestRecord]:
        """What its clients saw, once all is answered."""
        return [record for result in await self.task for record in result.records]


@contextlib.asynccontextmanager
async def under_load(
    stack: Stack, *workloads: tuple[Sequence[TimedRequest], bool], urls: Sequence[str] | None = None
) -> AsyncIterator[Background]:
    """Replay (requests, streamed) workloads meanwhile."""

    async def run() -> list[LoadResult]:
        replays = (replay(stack, requests, stream=stream, urls=urls) for requests, stream in workloads)
        return list(await asyncio.gather(*replays))

    task = asyncio.create_task(run())
    try:
        yield Background(task)
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float, what: str) -> None:
    """Wait until a condition holds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(0.02)


# What a system says of itself


async def assert_at_rest(stack: Stack, urls: Sequence[str] | None = None, gone: Iterable[str] = ()) -> None:
    """Nothing is left in routers (`urls`, else all), workers, the store and engines (but the `gone` ones)."""
    left = await settle(
        stack.redis_url, stack.options.pool, urls or stack.router_urls, timeout_s=15.0, access=stack.access
    )
    assert left.clean, left
    for url in set(stack.engine_urls) - set(gone):
        engine = msgspec.json.decode(await fetch(f"{url}/admin/stats?requests=0"))["leftovers"]
        assert not any(engine.values()), (url, engine)


async def fetch(url: str) -> str:
    """A page's text."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        http.get(url) as page,
    ):
        return await page.text()


async def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(await fetch(f"{url}/metrics"))
        for sample in family.samples
        if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
    )


async def rebalancer_url(stack: Stack, name: str = "rebalancer-1") -> str:
    """Where a rebalancer's metrics are."""
    return str((await stack.event(name, "rebalancer.ready"))["metrics_address"]).removesuffix("/metrics")


async def moves_done(stack: Stack, name: str = "rebalancer-1") -> float:
    """Requests that a rebalancer took off a queue."""
    url = await rebalancer_url(stack, name)
    return await metric(url, "dualmap_rebalancer_moves_total", outcome="done")


async def set_faults(engine_url: str, **faults: object) -> None:
    """Make an engine fail, or `reset=True` heal it."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{engine_url}/admin/faults", json=faults) as reply,
    ):
        assert reply.status == 200, await reply.text()


@contextlib.asynccontextmanager
async def control(stack: Stack, worker: str) -> AsyncIterator[WorkerControlStub]:
    """A worker's control calls."""
    address = str((await stack.event(worker, "worker.ready"))["grpc_address"])
    async with grpc_access(stack.access).channel(address) as channel:
        yield WorkerControlStub(channel)


async def describe(stack: Stack, worker: str) -> pb.DescribeReply:
    """What a worker holds."""
    async with control(stack, worker) as stub:
        reply: pb.DescribeReply = await stub.Describe(pb.DescribeRequest(), timeout=10.0)
        return reply


async def holds(stack: Stack, worker: str, *, queued: int = 0, running: int = 0) -> bool:
    """Whether a worker has at least so many requests waiting and running."""
    described = await describe(stack, worker)
    return described.queued >= queued and described.running >= running


# Exactly once


class Books(msgspec.Struct):
    """How often one request id was started, answered in full, given up, or refused, over all engines."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0


async def books(stack: Stack, gone: Iterable[str] = ()) -> dict[str, Books]:
    """The living engines' books, added up; `gone` are the URLs of killed ones."""
    added: dict[str, Books] = {}
    for url in stack.engine_urls:
        if url in gone:
            continue
        stats = msgspec.json.decode(await fetch(f"{url}/admin/stats"))
        for request_id, row in stats["requests"].items():
            book = added.setdefault(request_id, Books())
            for name, number in row.items():
                setattr(book, name, getattr(book, name) + number)
    return added


async def assert_all_once(stack: Stack, records: Sequence[RequestRecord]) -> None:
    """Every request has one right answer, and one engine has done its work, once.

    What is late anyway may have given way to others and been started again: a slow machine makes requests late.
    """
    assert_answered(records)
    engines = await books(stack)
    for record in records:
        book = engines.get(record.request_id, Books())
        gave_way = 0 if record.within_slo else book.aborted
        assert book == Books(started=1 + gave_way, finished=1, aborted=gave_way), (book, record)


def assert_answered(records: Sequence[RequestRecord], lost: Iterable[str] = ()) -> list[RequestRecord]:
    """Every client has one right answer, but for streams that had begun on a `lost` instance: those are returned.

    They end with an error event: a stream that just ends, or an answer that never comes, is `cut` or worse.
    """
    assert records
    wrong = [r for r in records if not r.ok and r.error != "stream_error"]
    assert not wrong, (Counter((r.error, r.detail) for r in wrong), wrong[0])
    assert not any(record.duplicate for record in records)
    broken = [record for record in records if record.error == "stream_error"]
    assert all(record.instance in set(lost) and record.ttft_s is not None for record in broken), broken
    return broken


async def assert_finished_once(
    stack: Stack, records: Sequence[RequestRecord], gone: Iterable[str] = ()
) -> None:
    """After faults: whatever was started and not finished was given up, and what is answered was finished once.

    The books of `gone` engines went with them.
    """
    engines = await books(stack, gone)
    twice = 0
    for record in records:
        book = engines.get(record.request_id, Books())
        assert book.started == book.finished + book.aborted, (record, book)
        if record.ok and record.reason != "retry" and not gone:
            assert book == Books(started=1, finished=1), (record, book)
        twice += book.finished > 1
    # A worker may be killed between its engine's last byte and the router: then the work is done again.
    assert twice <= 1


def p90(records: Sequence[RequestRecord]) -> float:
    """The TTFT in model seconds that nine of ten answers meet."""
    ttfts = sorted(record.ttft_s for record in records if record.ttft_s is not None)
    return ttfts[int(0.9 * (len(ttfts) - 1))]


def within_slo(records: Sequence[RequestRecord]) -> float:
    """The share of requests answered in time."""
    return sum(record.within_slo for record in records) / len(records)
