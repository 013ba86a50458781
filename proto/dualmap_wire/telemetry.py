"""What workers publish over ZeroMQ and what they register in Redis. Durations are seconds; no clock is shared.

Frames on the PUB socket: [topic, sequence (8 bytes, big-endian), msgpack payload]. The sequence counts the
messages of one generation of a worker, so that a subscriber sees a gap and a restart.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from dualmap.types import PrefillSpeed
from dualmap_wire.errors import WireError

QUEUE_TOPIC = b"dualmap.queue"
MAX_TENANT_CHARS = 64
"""Of a tenant's name, as in files of API keys: a report holds many."""

Weight = Annotated[float, msgspec.Meta(gt=0, le=100)]
"""Of an instance on the rings, where 1 is an ordinary one: every router holds points in proportion."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as its worker registers it in `instances`."""

    instance: str
    pool: str
    model: str
    grpc_address: str
    telemetry_address: str
    generation: int
    weight: Weight = 1.0
    state: str = "active"
    """`active`, or `draining`: no new keys, no moves to it."""
    kv_tokens: int = 0
    """Tokens that the engine's KV cache holds; 0 for unknown."""
    adapters: tuple[str, ...] = ()
    max_model_len: int = 0
    bytes_per_token: float = 4.0
    aliases: tuple[str, ...] = ()
    """Further names of the model."""
    kv_events: bool = False
    """The worker keeps ownership by its engine's KV events; otherwise it is what routers expect."""

    @property
    def serves(self) -> tuple[str, ...]:
        """Every name that a request may give: the model, its other names and its adapters."""
        return (self.model, *self.aliases, *self.adapters)


class RunningReport(msgspec.Struct, frozen=True, kw_only=True):
    """The prefill at the engine's head."""

    router: str
    charge_id: str
    elapsed_s: float
    cost_s: float
    feasible: bool
    """As booked."""
    gives_way_s: float | None = None
    """It is late and gives way to a feasible request within this time; None if it does not."""


class QueuedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the admission queue."""

    request_id: str
    waited_s: float
    own_s: float
    slo_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    priority: int = 0
    feasible: bool = True
    movable: bool = True
    backup: str = ""
    backup_cached_tokens: int = 0
    tenant: Annotated[str, msgspec.Meta(max_length=MAX_TENANT_CHARS)] = ""


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's state, ten times a second and when its queue changes."""

    instance: str
    pool: str
    generation: int
    state: str
    speed: tuple[float, float, float]
    """a, b, c of `PrefillSpeed`, with what changed lately."""
    fit_samples: int
    fit_residual: float
    bytes_per_token: float
    busy_s: float
    """Prefill seconds left in the engine."""
    held: bool
    queued_total: int
    queued: tuple[QueuedReport, ...]
    """In serving order, cut to a bound: `queued_total` is the truth."""
    running: RunningReport | None = None
    engine_running: int = 0
    engine_waiting: int = 0
    kv_use: float = 0.0
    kv_events: bool = False
    """Ownership follows the engine's KV events."""
    kv_events_lost: int = 0
    """Times that events were missed for good, since the worker began."""
    owned_chunks: int = 0
    """Chunks that the engine holds, or will soon, as the events tell; 0 without them."""
    preemptible_s: float = 0.0
    """The part of `busy_s` that gives way to a feasible request."""
    preemptions: int = 0
    """Prefills that were aborted and queued again, in all."""
    tenants_left_s: dict[str, float] = {}
    """Prefill seconds that tenants of the queue have left of their quantum, or overdrew; 0 where absent."""

    @property
    def prefill_speed(self) -> PrefillSpeed:
        """`speed` as the core takes it."""
        return PrefillSpeed(*self.speed)


_T = TypeVar("_T")
_report_decoder = msgspec.msgpack.Decoder(QueueReport)
_registration_decoder = msgspec.json.Decoder(Registration)


def encode_report(report: QueueReport) -> bytes:
    """The payload of a `queue` message."""
    return msgspec.msgpack.encode(report)


def decode_report(payload: bytes) -> QueueReport:
    """A `queue` message's payload; WireError for anything else."""
    return _decoded(_report_decoder.decode, payload)


def encode_registration(registration: Registration) -> bytes:
    """A registration as `instances` holds it."""
    return msgspec.json.encode(registration)


def decode_registration(payload: bytes) -> Registration:
    """A registration from `instances`; WireError for anything else."""
    return _decoded(_registration_decoder.decode, payload)


def _decoded(decode: Callable[[bytes], _T], payload: bytes) -> _T:
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"not a message of this release: {exc}") from exc
