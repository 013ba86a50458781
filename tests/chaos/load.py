"""The load of a trial: conversations, whole answers and long streams, open-loop, every text checked."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap

import msgspec

from dualmap_cli.load import LoadOptions, RequestRecord, Slo, run_load
from dualmap_sim.workloads import TimedRequest, Traffic, make_workload

from ..integration.load_checks import MODEL, prompts, says_its_own_answer
from .world import World

TIMEOUT_S = 60.0
_CHATS = {"system_tokens": 1024, "user_tokens": 60, "answer_tokens": 40, "think_s": 4, "turns_mean": 4}


@dataclass(frozen=True)
class Mix:
    """Requests per second of each kind."""

    chats: float = 4.0
    wholes: float = 1.5
    longs: float = 0.5

    def workloads(self, seconds: float, seed: int) -> "Workloads":
        """What to send; the same seed asks the same."""
        workloads: list[tuple[Sequence[TimedRequest], bool]] = []
        if self.chats:
            traffic = Traffic(self.chats, duration_s=seconds, seed=seed)
            workloads.append((make_workload("chat", traffic, _CHATS), True))
        if self.wholes:
            count = int(self.wholes * seconds)
            workloads.append((prompts(f"whole{seed}", self.wholes, count, 600, 20, seed), False))
        if self.longs:
            # Seconds long each: whatever happens, some are in their middle.
            count = int(self.longs * seconds)
            workloads.append((prompts(f"long{seed}", self.longs, count, 200, 250, seed), True))
        return workloads


Workloads = Sequence[tuple[Sequence[TimedRequest], bool]]
"""(requests, streamed) workloads."""


async def ask(
    world: World, workloads: Workloads, retries: int = 8, since_s: float | None = None
) -> list[RequestRecord]:
    """Send everything when it is due; a client whose router dies asks another, as behind a load balancer.

    The records' times count from `since_s` of `time.perf_counter`, or from now: each run's own count from when it began
    to send, which on a busy machine is later than whatever else counts from the same moment.
    """
    since_s = time.perf_counter() if since_s is None else since_s

    def options(stream: bool) -> LoadOptions:
        return LoadOptions(
            model=MODEL,
            stream=stream,
            timeout_s=TIMEOUT_S,
            retries=retries,
            slo=Slo(world.options.slo_s),
            extra_body={"ignore_eos": True},
            check=says_its_own_answer,
        )

    async def run(requests: Sequence[TimedRequest], stream: bool) -> list[RequestRecord]:
        begun_s: list[float] = []

        def noticed() -> Iterator[TimedRequest]:
            begun_s.append(time.perf_counter())
            yield from requests

        result = await run_load(noticed(), world.router_urls, options(stream))
        return [_later(record, begun_s[0] - since_s) for record in result.records]

    return [record for records in await asyncio.gather(*starmap(run, workloads)) for record in records]


def _later(record: RequestRecord, by_s: float) -> RequestRecord:
    tries = [msgspec.structs.replace(failed, at_s=failed.at_s + by_s) for failed in record.failed_tries]
    return msgspec.structs.replace(
        record, due_s=record.due_s + by_s, sent_s=record.sent_s + by_s, failed_tries=tries
    )


@contextlib.asynccontextmanager
async def asking(
    world: World, workloads: Workloads, since_s: float
) -> AsyncIterator["asyncio.Task[list[RequestRecord]]"]:
    """The same meanwhile; await the task for its records."""
    task = asyncio.create_task(ask(world, workloads, since_s=since_s))
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
