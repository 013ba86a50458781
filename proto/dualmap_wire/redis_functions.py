"""Calling the Redis functions: the library's source and names, the arguments and the replies as values."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import msgspec

from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed, Reason, RunningPrefill
from dualmap_wire.errors import WireError

STALE_PERF_US = 5_000_000
"""Telemetry older than this says nothing about what runs now; its speed is still the best guess."""


@lru_cache(maxsize=1)
def library() -> tuple[str, str]:
    """(suffix, source) of the function library; the suffix is the hash of the source."""
    template = resources.files("dualmap_wire").joinpath("redis_functions.lua").read_text(encoding="utf-8")
    suffix = hashlib.sha256(template.encode()).hexdigest()[:10]
    return suffix, f"#!lua name=dualmap_{suffix}\n" + template.replace("@SUFFIX@", suffix)


@lru_cache(maxsize=64)
def function_name(name: str) -> str:
    """The registered name of a function in this release's library."""
    return f"{name}_{library()[0]}"


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Chunk hashes as Redis members, 8 bytes each, in order."""
    return b"".join([h.to_bytes(8, "big") for h in hashes])


def unpack_hash(member: bytes) -> int:
    """One chunk hash from a Redis member."""
    return int.from_bytes(member, "big")


class RouteCall(msgspec.Struct, frozen=True, gc=False):
    """The arguments of `route`: what `choose` takes, and what to book under which name."""

    router: str
    charge_id: str
    request: ChoiceRequest
    rule: ChoiceRule
    hashes: bytes
    """Of the prompt's chunks, packed."""
    key_depth: int
    split_version: int
    pair: Sequence[str]
    pool: bytes
    """Names of the pool's instances, sorted, joined by newlines."""
    start: int
    """Where the key's own order of the pool begins."""
    default_speed: PrefillSpeed
    max_wait_s: float = 0.0
    """Book nowhere behind more work than this, and answer `Overload` where there is no such place; 0: no bound."""
    count: bool = True
    """Count the request along its key; false for a resubmission or a dry run."""
    book: bool = True
    at_home: bool = True
    """`pair` are the key's candidates; false where something else fixed the instance, as for a moved request."""

    def args(self) -> tuple[bytes, bytes, bytes]:
        """ARGV of the function."""
        request, rule, speed = self.request, self.rule, self.default_speed
        packed = _encode(
            (
                self.router,
                self.charge_id,
                rule.policy,
                request.prompt_tokens,
                request.chunk_tokens,
                request.slo_s,
                rule.lambda_own,
                rule.escape_at,
                rule.escape_margin,
                rule.paper_factor,
                self.split_version,
                self.key_depth,
                self.start,
                self.pair,
                self.count,
                self.book,
                self.max_wait_s,
                (speed.a_s, speed.b_s_per_token, speed.c_s_per_token2),
                self.at_home,
            )
        )
        return packed, self.hashes, self.pool


_encode = msgspec.msgpack.Encoder().encode
_decode_perf = msgspec.msgpack.Decoder(tuple[float, float, float, str, str, int, int, int, int, int]).decode


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a decision thought of one candidate."""

    instance: str
    owned_chunks: int
    wait_s: float
    own_s: float

    @property
    def ttft_s(self) -> float:
        """The expected TTFT there."""
        return self.wait_s + self.own_s


class Routed(msgspec.Struct, frozen=True, gc=False):
    """A decision that is booked."""

    instance: str
    backup: str | None
    reason: Reason
    feasible: bool
    owned_chunks: int
    backup_owned_chunks: int
    wait_s: float
    own_s: float
    ttft_s: float
    weighed: Sequence[Sequence[Any]] = ()
    """Of every candidate, as the function sent it: `parse_weighed` reads it for who wants to know."""


@dataclass(frozen=True, slots=True)
class StaleSplits:
    """The router's split set is old: take this one and ask again."""

    version: int
    splits: frozenset[int]


@dataclass(frozen=True, slots=True)
class Overload:
    """Nothing booked: on every instance the request would wait longer than the bound."""

    wait_s: float
    """On the instance that the policy would have chosen."""


def parse_route(reply: list[Any]) -> Routed | StaleSplits | Overload:
    """The reply of `route` as a value."""
    try:
        kind = reply[0]
        if kind == b"ok":
            (
                _, instance, backup, reason, feasible, owned, backup_owned, wait_us, own_us, ttft_us, weighed, _
            ) = reply  # fmt: skip
            _check_counts(owned, backup_owned)
            return Routed(
                instance=instance.decode(),
                backup=backup.decode() or None,
                reason=_REASONS[reason],
                feasible=feasible == 1,
                owned_chunks=owned,
                backup_owned_chunks=backup_owned,
                wait_s=wait_us / 1e6,
                own_s=own_us / 1e6,
                ttft_s=ttft_us / 1e6,
                weighed=weighed,
            )
        if kind == b"stale":
            return StaleSplits(int(reply[1]), frozenset(unpack_hash(member) for member in reply[2:]))
        if kind == b"overload":
            return Overload(reply[1] / 1e6)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as exc:
        raise WireError(f"route answered {reply!r:.200}") from exc
    raise WireError(f"route answered {kind!r:.40}")


_REASONS = {reason.encode(): reason for reason in Reason}


def _check_counts(*counts: object) -> None:
    """TypeError for what nobody would look at before calculating with it."""
    if any(type(count) is not int for count in counts):
        raise TypeError("a count that is none")


def weigh(instance: str, owned_chunks: int, wait_s: float, own_s: float) -> tuple[bytes, int, int, int]:
    """A candidate as `route` sends it."""
    return instance.encode(), owned_chunks, int(wait_s * 1e6), int(own_s * 1e6)


def parse_weighed(weighed: Sequence[Sequence[Any]]) -> list[Weighed]:
    """What a decision thought of its candidates."""
    try:
        return [
            Weighed(instance.decode(), owned, wait_us / 1e6, own_us / 1e6)
            for instance, owned, wait_us, own_us in weighed
        ]
    except (TypeError, ValueError, AttributeError) as exc:
        raise WireError(f"route weighed {weighed!r:.200}") from exc


@dataclass(frozen=True, slots=True)
class Entered:
    """What `enter` says to one request of a tenant with limits."""

    refused: Literal["", "rate", "concurrency"]
    wait_s: float
    """Until the rate would let it in."""
    remaining: int
    full_s: float
    """Until the bucket is full."""
    routers: int


def parse_enter(reply: list[Any]) -> Entered:
    """The reply of `enter` as a value."""
    try:
        kind, wait_us, remaining, full_us, routers, _now = reply
        _check_counts(remaining, routers)
        return Entered(_REFUSALS[kind], wait_us / 1e6, remaining, full_us / 1e6, routers)
    except (LookupError, TypeError, ValueError) as exc:
        raise WireError(f"enter answered {reply!r:.200}") from exc


_REFUSALS: dict[bytes, Literal["", "rate", "concurrency"]] = {
    b"ok": "",
    b"rate": "rate",
    b"concurrency": "concurrency",
}


@dataclass(frozen=True, slots=True)
class Perf:
    """What `perf` holds of one instance."""

    speed: PrefillSpeed
    running_router: str
    running_charge: str
    """The booked charge of the prefill at the engine's head; empty for none."""
    started_us: int
    """On the Redis server's clock; as an argument of `fold`, the microseconds since."""
    cost_us: int
    feasible: bool
    held: bool
    reported_us: int = 0
    gives_way_us: int = 0
    """It is late and gives way to a feasible request within this time; 0 if it does not."""

    def pack(self) -> bytes:
        """As the functions read it."""
        speed = self.speed
        return _encode(
            (
                speed.a_s,
                speed.b_s_per_token,
                speed.c_s_per_token2,
                self.running_router,
                self.running_charge,
                self.started_us,
                self.cost_us,
                # One number: whoever knows no preemption reads what gives way as infeasible, which it is.
                int(self.feasible) + 2 * self.gives_way_us,
                int(self.held),
                self.reported_us,
            )
        )


def parse_perf(packed: bytes) -> Perf | None:
    """`perf` of one instance; None where nothing was reported yet."""
    if not packed:
        return None
    try:
        a, b, c, router, charge, started_us, cost_us, kind, held, reported_us = _decode_perf(packed)
    except (ValueError, TypeError, msgspec.DecodeError) as exc:
        raise WireError(f"perf holds {packed!r:.100}") from exc
    speed = PrefillSpeed(a, b, c)
    return Perf(speed, router, charge, started_us, cost_us, kind % 2 == 1, held == 1, reported_us, kind // 2)


def parse_views(reply: list[Any], default_speed: PrefillSpeed) -> list[InstanceView]:
    """The reply of `views` as `choose` takes it."""
    try:
        now_us, *entries = reply
        views = []
        for name, f_us, i_us, owned, packed in entries:
            _check_counts(f_us, i_us, owned)
            view = instance_view(name.decode(), f_us, i_us, owned, parse_perf(packed), now_us, default_speed)
            views.append(view)
        return views
    except (TypeError, ValueError, AttributeError) as exc:
        raise WireError(f"views answered {reply!r:.200}") from exc


def instance_view(
    instance: str,
    feasible_us: int,
    infeasible_us: int,
    owned_chunks: int,
    perf: Perf | None,
    now_us: int,
    default_speed: PrefillSpeed,
) -> InstanceView:
    """One instance's view from its charges, its ownership and its telemetry."""
    running, held = None, False
    if perf is not None and now_us - perf.reported_us <= STALE_PERF_US:
        held = perf.held
        if perf.running_charge:
            elapsed_s = (now_us - perf.started_us) / 1e6
            gives_way_s = perf.gives_way_us / 1e6 if perf.gives_way_us else None
            running = RunningPrefill(perf.cost_us / 1e6, elapsed_s, perf.feasible, gives_way_s)
    return InstanceView(
        instance=instance,
        feasible_s=feasible_us / 1e6,
        infeasible_s=infeasible_us / 1e6,
        owned_chunks=owned_chunks,
        speed=perf.speed if perf is not None else default_speed,
        running=running,
        held=held,
    )
