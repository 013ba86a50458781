"""What the tests of engines in simulated time share."""

from collections.abc import Callable

from dualmap_sim.fleet.engine import CHUNK_TOKENS, Engine, Sequence
from dualmap_sim.fleet.loop import Loop
from dualmap_sim.workloads.arrival import Arrival


def arrival(
    name: str, tokens: int, output: int = 1, chunks: tuple[int, ...] | None = None, at_s: float = 0.0
) -> Arrival:
    """A request; unless its chunks are given it shares nothing with another one of another name."""
    if chunks is None:
        chunks = tuple(hash((name, index)) for index in range(tokens // CHUNK_TOKENS))
    return Arrival(at_s, name, tokens, output, chunks)


class Log:
    """A listener that keeps when each sequence had its first token and its last, by request id."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.first_s: dict[str, float] = {}
        self.finished_s: dict[str, float] = {}
        self.cached: dict[str, int] = {}
        self.on_finished: Callable[[], None] = lambda: None

    def first_token(self, sequence: Sequence) -> None:
        name = sequence.arrival.request_id
        assert sequence.prefilled and name not in self.first_s
        self.first_s[name] = self._loop.now_s
        self.cached[name] = sequence.cached_tokens

    def finished(self, sequence: Sequence) -> None:
        name = sequence.arrival.request_id
        assert name in self.first_s and name not in self.finished_s
        assert sequence.cached_tokens == self.cached[name]
        self.finished_s[name] = self._loop.now_s
        self.on_finished()


def submit(loop: Loop, engine: Engine, request: Arrival) -> Sequence:
    """Submit a request when it is due."""
    sequence = Sequence(request)
    loop.at(request.at_s, engine.submit, sequence)
    return sequence


class EngineBench:
    """An engine on a loop, to be asked."""

    loop: Loop
    engine: Engine

    def submit(
        self,
        name: str,
        tokens: int,
        output: int = 1,
        chunks: tuple[int, ...] | None = None,
        at_s: float = 0.0,
    ) -> Sequence:
        return submit(self.loop, self.engine, arrival(name, tokens, output, chunks, at_s))
