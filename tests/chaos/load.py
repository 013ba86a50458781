"""The load of a trial: conversations, whole answers and long streams, open-loop, every text checked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

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


async def ask(world: World, workloads: Workloads, retries: int = 8) -> list[RequestRecord]:
    """Send everything when it is due; a client whose router dies asks another, as behind a load balancer."""

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

    runs = (run_load(requests, world.router_urls, options(stream)) for requests, stream in workloads)
    return [record for result in await asyncio.gather(*runs) for record in result.records]


@contextlib.asynccontextmanager
async def asking(world: World, workloads: Workloads) -> AsyncIterator["asyncio.Task[list[RequestRecord]]"]:
    """The same meanwhile; await the task for its records."""
    task = asyncio.create_task(ask(world, workloads))
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
