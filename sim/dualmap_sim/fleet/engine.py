"""What the fleet asks of a simulated engine, and the request as engines see it."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from dualmap_sim.fleet.prefix_cache import Lease
from dualmap_sim.workloads.arrival import Arrival
from dualmap_sim.workloads.text import BLOCK_TOKENS
from dualmap_sim.workloads.trace_line import num_blocks

CHUNK_TOKENS = BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Sequence:
    """One run of a request inside an engine; it ends with its last token or an abort."""

    arrival: Arrival
    lease: Lease | None = None
    cached_tokens: int = 0
    """Found in the cache when this run began."""
    prefilled: bool = False
    context: object = field(default=None, repr=False)
    """Whose it is: engines hand it back."""

    @property
    def num_blocks(self) -> int:
        """Blocks for the prompt."""
        return num_blocks(self.arrival.input_tokens)


class EngineListener(Protocol):
    """Who is told what an engine does."""

    def first_token(self, sequence: Sequence) -> None:
        """Its prefill is over."""

    def finished(self, sequence: Sequence) -> None:
        """Its last token is out."""


class Engine(Protocol):
    """A simulated engine: sequences in, first tokens and ends out, in simulated time."""

    busy_s: float
    """Seconds that it has prefilled."""

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room."""

    @property
    def kv_use(self) -> float:
        """Share of the blocks that sequences hold."""

    def cached_chunks(self, chunks: SequenceOf[int]) -> int:
        """Leading chunks of a prompt that it holds."""

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in."""

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out; what it has computed stays cached."""

    def kill(self) -> list[Sequence]:
        """Lose everything: the sequences that were inside come back, the cache is gone."""
