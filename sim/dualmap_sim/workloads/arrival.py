"""A request without its text: what a discrete-event simulation needs of a workload."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import xxhash

from dualmap_sim.workloads.ideal import block_chain
from dualmap_sim.workloads.request import TimedRequest
from dualmap_sim.workloads.text import BLOCK_TOKENS


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
                chunks=_full_chunks(request, block_tokens),
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


def _full_chunks(request: TimedRequest, block_tokens: int) -> tuple[int, ...]:
    """What an adapter computes is its own."""
    chain = block_chain(request.spans(), block_tokens, request.adapter or "")
    return tuple(chain[: request.input_tokens // block_tokens])


def _mix(chunk: int, salt: int) -> int:
    return xxhash.xxh3_64_intdigest(chunk.to_bytes(8, "big"), salt)
