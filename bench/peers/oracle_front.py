"""The oracle as a proxy of its own, so that it is measured like the others."""

import argparse
import asyncio
import time

import uvloop

from bench.peers.engines import PROFILE
from bench.peers.front import Front, open_http, serve
from bench.peers.oracle import Oracle
from dualmap.prefix import chunk_hashes, prefix_seed
from dualmap_sim.engine.text import BYTES_PER_TOKEN

_BLOCK_BYTES = PROFILE.block_size * BYTES_PER_TOKEN


class OracleChooser:
    """Tells the oracle what comes and what begins; model time is wall time by the scale."""

    def __init__(self, engines: list[str], time_scale: float) -> None:
        self._engines = engines
        self._time_scale = time_scale
        self._oracle = Oracle(PROFILE, len(engines))
        self._seed = prefix_seed("oracle")
        self._placed: dict[str, int] = {}

    async def choose(self, request_id: str, prompt: bytes) -> str:
        """The engine with the smallest expected TTFT."""
        blocks = chunk_hashes(prompt, self._seed, _BLOCK_BYTES)
        placed = self._oracle.place(request_id, len(prompt) // BYTES_PER_TOKEN, blocks, self._now_s())
        self._placed[request_id] = placed.index
        return self._engines[placed.index]

    def began(self, request_id: str) -> None:
        """Its first byte came."""
        self._oracle.answered(request_id, self._placed[request_id], self._now_s())

    def ended(self, request_id: str) -> None:
        """It is over."""
        index = self._placed.pop(request_id, None)
        if index is not None:
            self._oracle.answered(request_id, index, self._now_s())

    def _now_s(self) -> float:
        return time.monotonic() * self._time_scale


async def _main(given: argparse.Namespace) -> None:
    async with open_http() as http:
        await serve(Front(OracleChooser(given.engine, given.time_scale), http), given.port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--time-scale", type=float, required=True)
    parser.add_argument("--engine", action="append", required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_main(parser.parse_args()))
