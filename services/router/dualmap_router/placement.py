"""Placement: from a prompt to an instance, deciding and booking in one round trip to Redis.

The router hashes chunks, finds the key's candidates on its rings and asks the route function. While Redis
is away or late, `local_decision` stands in.
"""

from collections.abc import Sequence, Set
from typing import Any

import msgspec

from dualmap.ttft import TokenRatio, split_prompt
from dualmap.types import ChoiceRule, InstanceView, Reason
from dualmap_router.charges import Charges
from dualmap_router.errors import ApiError, overloaded, unavailable
from dualmap_router.local_decision import decide_alone, local_view
from dualmap_router.pool import Pool, make_offer
from dualmap_router.prompt import Prompt, hash_prompt
from dualmap_router.request import InferenceRequest
from dualmap_router.settings import RouterSettings
from dualmap_router.timing import Timing
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.errors import WireError
from dualmap_wire.redis_functions import (
    Overload,
    RouteCall,
    Routed,
    StaleSplits,
    parse_route,
    parse_views,
)
from dualmap_wire.redis_keys import PoolKeys

_STALE_RETRIES = 3
_MOST_CHUNKS = 100_000
"""Written down of one instance, where nothing says how many it can hold."""


class Placed(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes, and what the decision expects."""

    charge_id: str
    instance: str
    backup: str | None
    reason: Reason
    candidates: tuple[str, ...]
    feasible: bool
    owned_chunks: int
    cached_tokens: int
    backup_cached_tokens: int
    own_s: float
    ttft_s: float
    shared: bool
    """False when decided without Redis."""
    key: int
    """The prefix key that the rings hashed."""
    weighed: Sequence[Sequence[Any]] = ()
    """Every candidate, as `parse_weighed` reads it."""


class Placement:
    """The pool's rings and splits as this router knows them, and the decision over them."""

    def __init__(self, settings: RouterSettings, router: str, store: Store, charges: Charges) -> None:
        self._settings = settings
        self._router = router
        self._store = store
        self._keys = PoolKeys(settings.pool)
        self.charges = charges
        self.pool = Pool()
        self.splits: frozenset[int] = frozenset()
        self.split_version = 0
        self.tokens = TokenRatio()
        self._turn = 0

    @property
    def usable(self) -> tuple[str, ...]:
        """Instances that can be sent to now, sorted."""
        return self.pool.everyone.names

    def usable_for(self, model: str | None) -> frozenset[str]:
        """Those of them that serve a model or an adapter."""
        return self.pool.offer(model).members

    def prompt(self, inference: InferenceRequest, adapter: str, prefix_key: str | None) -> Prompt:
        """Hash a request's prompt, and estimate its tokens where they are not known."""
        return hash_prompt(self._settings, inference, adapter, prefix_key, self.tokens.bytes_per_token)

    def count_tokens(self, prompt: Prompt, num_tokens: int) -> None:
        """Learn from what an engine counted; only text tells how many bytes make a token."""
        if prompt.is_text:
            self.tokens = self.tokens.observe(prompt.num_bytes, num_tokens)

    # The decision

    async def place(
        self,
        prompt: Prompt,
        slo_s: float,
        rule: ChoiceRule,
        exclude: Set[str] = frozenset(),
        target: str | None = None,
        first: bool = True,
        tenant: str = "",
        timing: Timing | None = None,
    ) -> Placed:
        """Decide and book. `target` fixes the instance of a moved request; `exclude` lost instances.

        Only a request's first placement counts along its prefix key. Raises ApiError 503 when no instance can be
        reached, 429 when none answers within the bound. The charge is the caller's to release.
        """
        charge_id = self.charges.open(tenant)
        try:
            return await self._place(prompt, slo_s, rule, exclude, target, first, charge_id, timing)
        except BaseException:
            self.charges.release(charge_id)
            raise

    async def _place(
        self,
        prompt: Prompt,
        slo_s: float,
        rule: ChoiceRule,
        exclude: Set[str],
        target: str | None,
        first: bool,
        charge_id: str,
        timing: Timing | None,
    ) -> Placed:
        for _ in range(_STALE_RETRIES):
            call, candidates = self.route_call(prompt, slo_s, rule, exclude, target, charge_id, first)
            try:
                routed = await (self._ask(call) if timing is None else timing.of(self._ask(call)))
            except (StoreError, WireError):
                break
            if isinstance(routed, StaleSplits):
                self.splits, self.split_version = routed.splits, routed.version
                continue
            if isinstance(routed, Overload):
                raise _overloaded(routed.wait_s - call.max_wait_s)
            self.charges.booked(charge_id, routed.instance, routed.own_s, routed.feasible)
            self._own(prompt, routed.instance)
            return _placed(charge_id, prompt, call, candidates, routed, shared=True)
        self._turn += 1
        alone = decide_alone(call, self.charges, self.pool.membership, self._turn)
        if isinstance(alone, Overload):
            raise _overloaded(alone.wait_s - call.max_wait_s)
        self.charges.book(charge_id, alone.instance, alone.own_s, alone.feasible)
        self._own(prompt, alone.instance)
        return _placed(charge_id, prompt, call, candidates, alone, shared=False)

    def route_call(
        self,
        prompt: Prompt,
        slo_s: float,
        rule: ChoiceRule,
        exclude: Set[str] = frozenset(),
        target: str | None = None,
        charge_id: str = "",
        first: bool = True,
        book: bool = True,
    ) -> tuple[RouteCall, tuple[str, ...]]:
        """The route function's arguments for a prompt, and the candidates that its rings offer."""
        key, depth = prompt.key(self.splits)
        offer = self.pool.offer(prompt.model)
        among = None if offer is self.pool.everyone else offer.members
        candidates = self.pool.rings.candidates(key, among) if offer.names else ()
        # The rebalancer does not know who serves what.
        if target is not None and target in offer.members:
            offer = make_offer((target,))
        elif exclude:
            offer = offer.without(exclude)
        names = offer.names
        if not names:
            raise unavailable("no instance of this model can be reached")
        pair = [name for name in candidates if name in offer.members]
        at_home = bool(pair)
        call = RouteCall(
            router=self._router,
            charge_id=charge_id,
            request=prompt.choice_request(slo_s),
            rule=rule,
            hashes=prompt.packed,
            key_depth=depth,
            split_version=self.split_version,
            pair=pair or [names[key % len(names)]],
            pool=offer.packed,
            start=key % len(names),
            default_speed=self.pool.typical,
            # It was let in once: that it moved or that its instance was lost must not turn it away.
            max_wait_s=self._settings.wait_bound_s(slo_s) if first and book and target is None else 0.0,
            count=first and book and depth > 0,
            book=book,
            at_home=at_home,
        )
        return call, candidates

    async def dry_run(
        self, prompt: Prompt, slo_s: float, rule: ChoiceRule
    ) -> tuple[Routed | None, RouteCall, tuple[str, ...]]:
        """What `place` would decide now, booking nothing; no decision while Redis is away."""
        call, candidates = self.route_call(prompt, slo_s, rule, book=False)
        try:
            routed = await self._ask(call)
        except (StoreError, WireError):
            return None, call, candidates
        return (routed if isinstance(routed, Routed) else None), call, candidates

    async def _ask(self, call: RouteCall) -> Routed | StaleSplits | Overload:
        reply = await self._store.function(
            "route", self._keys.prefix, *call.args(), deadline_s=self._settings.route_deadline_ms / 1e3
        )
        return parse_route(reply)

    async def views(self, packed: bytes, names: tuple[str, ...]) -> list[InstanceView]:
        """Every instance as a decision over these chunks would see it now."""
        try:
            reply = await self._store.function("views", self._keys.prefix, packed, "\n".join(names).encode())
            return parse_views(reply, self.pool.typical)
        except (StoreError, WireError):
            return [local_view(name, self.charges, self.pool.membership, self.pool.typical) for name in names]

    def _own(self, prompt: Prompt, instance: str) -> None:
        """Write down, off the path, that the instance will hold this prompt."""
        member = self.pool.member(instance)
        if not prompt.hashes or member is None:
            return
        registration = member.registration
        most = _MOST_CHUNKS
        # Where the worker follows its engine's events, it says what is evicted.
        if registration.kv_tokens and not registration.kv_events:
            most = int(registration.kv_tokens / prompt.chunk_tokens)
        self._store.post(
            "own_add",
            self._keys.prefix,
            instance,
            str(registration.generation),
            max(most, 1),
            prompt.packed,
        )


def _overloaded(excess_s: float) -> ApiError:
    return overloaded(
        "every instance is busy for longer than this service lets a request wait; try again later",
        retry_after_s=max(1.0, min(excess_s, 60.0)),
    )


def _placed(
    charge_id: str,
    prompt: Prompt,
    call: RouteCall,
    candidates: tuple[str, ...],
    routed: Routed,
    shared: bool,
) -> Placed:
    _, cached = split_prompt(call.request, routed.owned_chunks)
    _, backup_cached = split_prompt(call.request, routed.backup_owned_chunks)
    return Placed(
        charge_id=charge_id,
        instance=routed.instance,
        backup=routed.backup,
        reason=routed.reason,
        candidates=candidates,
        feasible=routed.feasible,
        owned_chunks=routed.owned_chunks,
        cached_tokens=cached,
        backup_cached_tokens=backup_cached,
        own_s=routed.own_s,
        ttft_s=routed.ttft_s,
        shared=shared,
        key=prompt.hashes[call.key_depth - 1] if prompt.ring_key is None else prompt.ring_key,
        weighed=routed.weighed,
    )
