"""A session to a worker that is away: it tries again ever more rarely, and not in step with others."""

import asyncio
from itertools import pairwise
from typing import Any

from dualmap_router.sessions import Session
from dualmap_service.grpc_access import PlainGrpc
from dualmap_wire.v1 import worker_pb2 as pb

from ...fuzz.memory_net import MemoryLoop

FIRST_S, MOST_S, TRIES = 0.05, 2.0, 12


class NobodyThere(MemoryLoop):
    """A network without a host, which notes when somebody tries."""

    def __init__(self) -> None:
        super().__init__(())
        self.tried_s: list[float] = []

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.tried_s.append(self.now_s)
        return await super().create_connection(*args, **kwargs)


def pauses(num_sessions: int = 1) -> list[list[float]]:
    """The pauses between the first tries of each of some sessions that begin together."""
    loop = NobodyThere()

    async def run() -> list[list[float]]:
        found = []
        for _ in range(num_sessions):
            loop.tried_s.clear()
            session = Session("a", "h:1", pb.Hello(), 1 << 16, lambda: None, PlainGrpc())
            await asyncio.sleep(MOST_S * TRIES)
            tried_s = loop.tried_s[: TRIES + 1]
            found.append([after - before for before, after in pairwise(tried_s)])
            await session.close()
        return found

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def test_pauses_grow_to_a_bound() -> None:
    [drawn] = pauses()
    assert len(drawn) == TRIES
    for number, pause_s in enumerate(drawn):
        expected_s = min(FIRST_S * 2**number, MOST_S)
        assert expected_s / 2 - 1e-6 <= pause_s <= expected_s + 1e-6, drawn


def test_two_sessions_do_not_try_in_step() -> None:
    drawn = pauses(num_sessions=20)
    for number in range(TRIES):
        assert len({round(one[number], 6) for one in drawn}) > 10
