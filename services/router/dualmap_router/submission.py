"""What a worker is told of a request."""

import time

from dualmap_router.flight import Flight
from dualmap_router.placement import Placed
from dualmap_wire.v1 import worker_pb2 as pb


def make_submit(flight: Flight, placed: Placed | None) -> pb.Submit:
    """The frame that hands a flight to a worker; without a placement it is not queued there."""
    submit = pb.Submit(
        request_id=flight.request_id,
        method=flight.method,
        path=flight.path,
        headers=flight.headers,
        body=flight.body,
        queued=placed is not None,
        hide_usage=flight.hide_usage,
        streamed=flight.streamed,
    )
    if placed is not None and flight.prompt is not None:
        placement = submit.placement
        placement.charge_id = placed.charge_id
        placement.prompt_tokens = flight.prompt.num_tokens
        placement.cached_tokens = placed.cached_tokens
        placement.prompt_bytes = flight.prompt.num_bytes
        placement.slo_s = flight.slo_s
        placement.age_s = time.monotonic() - flight.started_s
        placement.priority = flight.priority
        placement.feasible = placed.feasible
        placement.backup = placed.backup or ""
        placement.backup_cached_tokens = placed.backup_cached_tokens
        placement.moves = flight.moves
        placement.predicted_ttft_s = placed.ttft_s
        placement.chunk_hashes = flight.prompt.packed
        placement.chunk_bytes = flight.prompt.chunk_bytes
        placement.tenant = flight.tenant
    return submit
