"""How much of a workload an infinite prefix cache could serve: the ceiling that reports compare with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS, Span


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """A workload in numbers; shares are of prompt blocks."""

    requests: int
    duration_s: float
    mean_input_tokens: float
    mean_output_tokens: float
    ideal_hit_share: float


def summarize(requests: Sequence[TimedRequest]) -> WorkloadSummary:
    """Describe a workload without making its text."""
    count = max(1, len(requests))
    return WorkloadSummary(
        requests=len(requests),
        duration_s=requests[-1].at_s - requests[0].at_s if requests else 0.0,
        mean_input_tokens=sum(request.input_tokens for request in requests) / count,
        mean_output_tokens=sum(request.output_tokens for request in requests) / count,
        ideal_hit_share=ideal_hit_share(requests),
    )


def ideal_hit_share(requests: Iterable[TimedRequest], block_tokens: int = BLOCK_TOKENS) -> float:
    """Share of prompt blocks whose whole prefix came earlier in the workload; 0 when there are none."""
    seen: set[int] = set()
    hits = total = 0
    for request in requests:
        chain = block_chain(request.spans(), block_tokens)
        total += len(chain)
        for block in chain:
            if block not in seen:
                break
            hits += 1
        seen.update(chain)
    return hits / total if total else 0.0


def block_chain(spans: Iterable[Span], block_tokens: int = BLOCK_TOKENS, adapter: str = "") -> list[int]:
    """An id per prompt block, the last one perhaps partial; equal ids mean equal prefixes up to there.

    The same in every process. What an adapter computes is its own.
    """
    chain: list[int] = []
    previous = xxhash.xxh3_64_intdigest(adapter.encode()) if adapter else 0
    pieces: list[str] = []
    room = block_tokens
    for key, tokens in spans:
        at = 0
        while at < tokens:
            take = min(room, tokens - at)
            pieces.append(f"{key}\x00{at}\x00{take}")
            at += take
            room -= take
            if room == 0:
                previous = _block_id(pieces, previous)
                chain.append(previous)
                pieces = []
                room = block_tokens
    if pieces:
        chain.append(_block_id(pieces, previous))
    return chain


def _block_id(pieces: Sequence[str], previous: int) -> int:
    return xxhash.xxh3_64_intdigest("\x01".join(pieces).encode(), previous)
