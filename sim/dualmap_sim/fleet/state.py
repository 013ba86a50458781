"""What the routers of a simulated fleet share: charges, telemetry, ownership, as Redis holds them in the live one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dualmap.types import InstanceView, PrefillSpeed, RunningPrefill


class Holders:
    """Which instances hold which chunks, as far as is known: one bit per instance."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def add(self, chunks: Sequence[int], index: int) -> None:
        """Instance `index` holds these chunks, or will."""
        bit, masks = 1 << index, self._masks
        for chunk in chunks:
            masks[chunk] = masks.get(chunk, 0) | bit

    def remove(self, chunk: int, index: int) -> None:
        """It holds this one no more."""
        left = self._masks.get(chunk, 0) & ~(1 << index)
        if left:
            self._masks[chunk] = left
        else:
            self._masks.pop(chunk, None)

    def depth(self, chunks: Sequence[int], index: int) -> int:
        """How many leading chunks one instance holds."""
        bit, masks = 1 << index, self._masks
        for place, chunk in enumerate(chunks):
            if not masks.get(chunk, 0) & bit:
                return place
        return len(chunks)

    def depths(self, chunks: Sequence[int], num_instances: int) -> list[int]:
        """How many leading chunks each instance holds, in one walk."""
        depths = [0] * num_instances
        holding, masks = (1 << num_instances) - 1, self._masks
        for place, chunk in enumerate(chunks):
            still = holding & masks.get(chunk, 0)
            for index in bits(holding ^ still):
                depths[index] = place
            holding = still
            if not holding:
                return depths
        for index in bits(holding):
            depths[index] = len(chunks)
        return depths


def bits(mask: int) -> Iterator[int]:
    """The places of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(slots=True)
class Charge:
    """Prefill seconds booked on an instance until the request's first byte."""

    index: int
    own_s: float
    feasible: bool
    tokens: int
    """Uncached prompt tokens, as expected."""
    blocks: int
    """Blocks of the whole prompt."""
    released: bool = False


@dataclass(slots=True)
class Perf:
    """What telemetry last said of an instance."""

    speed: PrefillSpeed
    running: Charge | None = None
    """The charge of the prefill at the engine's head."""
    started_s: float = 0.0
    cost_s: float = 0.0
    gives_way_s: float | None = None
    held: bool = False


@dataclass(slots=True)
class Load:
    """What the baselines ask of an instance: counts of what was placed on it and has not ended."""

    num_pending: int = 0
    """Requests that have shown no first token."""
    num_decoding: int = 0
    pending_tokens: int = 0
    """Uncached prompt tokens not yet prefilled, as expected when they were placed."""
    pending_s: float = 0.0
    """Prefill seconds of the same."""
    kv_blocks: int = 0
    """Blocks of the prompts that were placed and have not ended."""
    decode_blocks: int = 0
    """Those of them that decode."""


@dataclass(slots=True)
class Books:
    """One set of books: what is booked on each instance, and the counts behind the baselines."""

    feasible_s: list[float]
    infeasible_s: list[float]
    loads: list[Load]

    @classmethod
    def empty(cls, num_instances: int) -> "Books":
        """Nothing booked."""
        return cls([0.0] * num_instances, [0.0] * num_instances, [Load() for _ in range(num_instances)])

    def copy(self) -> "Books":
        """The same now, on its own from here on."""
        return Books([*self.feasible_s], [*self.infeasible_s], [replace(load) for load in self.loads])

    def book(self, charge: Charge) -> None:
        """Book a charge."""
        booked = self.feasible_s if charge.feasible else self.infeasible_s
        booked[charge.index] += charge.own_s
        load = self.loads[charge.index]
        load.num_pending += 1
        load.pending_tokens += charge.tokens
        load.pending_s += charge.own_s
        load.kv_blocks += charge.blocks

    def release(self, charge: Charge) -> None:
        """Take a charge back; what is left of rounding is nothing."""
        booked = self.feasible_s if charge.feasible else self.infeasible_s
        left = booked[charge.index] - charge.own_s
        booked[charge.index] = left if left > 1e-9 else 0.0
        load = self.loads[charge.index]
        load.num_pending -= 1
        load.pending_tokens -= charge.tokens
        left = load.pending_s - charge.own_s
        load.pending_s = left if left > 1e-9 else 0.0
        load.kv_blocks -= charge.blocks

    def decodes(self, charge: Charge) -> None:
        """A charge that was released because its first token is out: its blocks are held on."""
        load = self.loads[charge.index]
        load.num_decoding += 1
        load.kv_blocks += charge.blocks
        load.decode_blocks += charge.blocks

    def ends(self, charge: Charge) -> None:
        """Its last token is out."""
        load = self.loads[charge.index]
        load.num_decoding -= 1
        load.kv_blocks -= charge.blocks
        load.decode_blocks -= charge.blocks


def view(
    name: str, depth: int, feasible_s: float, infeasible_s: float, perf: Perf, now_s: float
) -> InstanceView:
    """One instance as a decision of the core sees it."""
    running = None
    # A prefill that has shown its first byte since telemetry came is no longer in the way.
    if perf.running is not None and not perf.running.released:
        running = RunningPrefill(perf.cost_s, now_s - perf.started_s, perf.running.feasible, perf.gives_way_s)
    return InstanceView(name, feasible_s, infeasible_s, depth, perf.speed, running, perf.held)
