"""A request without its text: what a discrete-event simulation needs of a workload."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import xxhash

from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS, Span


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request due `at_s` after the workload starts; sizes are tokens."""

    at_s: float
    request_id: str
    input_tokens: int
    output_tokens: int
    chunks: tuple[int, ...] = ()
    """Ids of the prompt's full chunks of 512 tokens; an equal id means an equal prefix up to there."""
    tenant: str = ""
    adapter: str = ""
    session: str | None = None
    slo_s: float | None = None
    """Its own TTFT objective; None leaves it to the pool."""


def to_arrivals(requests: Iterable[TimedRequest], block_tokens: int = BLOCK_TOKENS) -> list[Arrival]:
    """Requests without their text, in order of arrival."""
    return sorted(
        (
            Arrival(
                at_s=request.at_s,
                request_id=request.request_id,
                input_tokens=request.input_tokens,
                output_tokens=request.output_tokens,
                chunks=tuple(full_chunks(request.spans(), block_tokens, request.adapter or "")),
                tenant=request.tenant or "",
                adapter=request.adapter or "",
                session=request.session,
                slo_s=request.slo_ttft_s,
            )
            for request in requests
        ),
        key=lambda arrival: arrival.at_s,
    )


def at_rate(arrivals: Sequence[Arrival], rate_req_s: float) -> list[Arrival]:
    """The same requests in the same order at another mean rate: gaps shrink or grow alike."""
    if len(arrivals) < 2:
        return list(arrivals)
    first_s = arrivals[0].at_s
    span_s = arrivals[-1].at_s - first_s
    factor = len(arrivals) / rate_req_s / span_s if span_s > 0 else 0.0
    return [replace(arrival, at_s=(arrival.at_s - first_s) * factor) for arrival in arrivals]


def reseeded(arrivals: Sequence[Arrival], seed: int, jitter_s: float) -> list[Arrival]:
    """Another draw of the same workload: arrivals shift by up to `jitter_s`, chunk ids hash elsewhere.

    Seed 0 is the workload itself. What is shared with what stays as it is.
    """
    if seed == 0:
        return list(arrivals)
    rng = random.Random(seed)
    salt = rng.getrandbits(64)
    moved = [
        replace(
            arrival,
            at_s=max(arrival.at_s + rng.uniform(-jitter_s, jitter_s), 0.0),
            chunks=tuple(_mix(chunk, salt) for chunk in arrival.chunks),
        )
        for arrival in arrivals
    ]
    return sorted(moved, key=lambda arrival: arrival.at_s)


def full_chunks(spans: Iterable[Span], block_tokens: int = BLOCK_TOKENS, adapter: str = "") -> list[int]:
    """An id per full chunk of a prompt; the same in every process. What an adapter computes is its own."""
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
                previous = xxhash.xxh3_64_intdigest("\x01".join(pieces).encode(), previous)
                chain.append(previous)
                pieces = []
                room = block_tokens
    return chain


def _mix(chunk: int, salt: int) -> int:
    return xxhash.xxh3_64_intdigest(chunk.to_bytes(8, "big"), salt)
