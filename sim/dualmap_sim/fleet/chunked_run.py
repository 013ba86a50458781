"""A sequence inside the chunked engine, and what is due for it at which step."""

import math
from heapq import heappop, heappush

from dualmap_sim.fleet.engine import Sequence

GONE = -1


class Run:
    """A sequence with its progress; `order` counts admissions and is `GONE` while it holds no blocks."""

    __slots__ = (
        "blocks", "chunks", "decodes", "generated", "max_new_tokens", "num_committed", "num_computed", "order",
        "prompt_tokens", "sequence", "started", "zero_step",
    )  # fmt: skip

    def __init__(self, sequence: Sequence) -> None:
        arrival = sequence.arrival
        self.sequence = sequence
        self.chunks = arrival.chunks
        self.prompt_tokens = arrival.input_tokens
        self.max_new_tokens = arrival.output_tokens
        self.generated = 0
        self.decodes = False
        self.zero_step = 0
        """While it decodes `generated` stands still: it has generated as many tokens as steps since this one."""
        self.started = False
        self.order = GONE
        self.blocks: list[int] = []
        self.num_computed = 0
        self.num_committed = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens, while it does not decode."""
        return self.prompt_tokens + self.generated


class DueHeap:
    """Runs by the step at which something is due; who has left the engine meanwhile is passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Run]] = []

    def push(self, step: int, run: Run) -> None:
        """Due at a step, for as long as the run stays admitted."""
        heappush(self._heap, (step, run.order, run))

    def next_step(self) -> float:
        """When the next one is due; infinity for none."""
        heap = self._heap
        while heap and heap[0][2].order != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop(self, step: int) -> Run | None:
        """The next one that is due by now, in order of admission."""
        return heappop(self._heap)[2] if self.next_step() <= step else None
