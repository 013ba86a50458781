"""Snapshots: everything at one moment, made at most twice a second however many look, and never while nobody does."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from dualmap.hash_ring import RingPair, places
from dualmap_router.placement import Placement
from dualmap_router.sessions import Sessions
from dualmap_router.settings import RouterSettings
from dualmap_router.ui.hot import NUM_HOT, HotPrefix, HotPrefixes
from dualmap_router.ui.instances import Departures, instance_views
from dualmap_router.ui.request_log import RequestLog
from dualmap_router.ui.requests import request_view
from dualmap_router.ui.view import Gone, Minutes, MoveDone, Point, Prefix, Request, Rings, Snapshot
from dualmap_router.ui.window import BUCKET_S, Bucket, total
from dualmap_service.errors import StoreError
from dualmap_service.registry import MembershipWatch
from dualmap_service.store import Store
from dualmap_wire.board import Board, decode_board
from dualmap_wire.errors import WireError
from dualmap_wire.redis_keys import PoolKeys

RING_SLOTS = 360
_FRESH_S = 0.5
_MOST_WAITING = 40
_MOST_ENDED = 60
_RATE_BUCKETS = 2


class Snapshots:
    """Makes snapshots of this router and its pool."""

    def __init__(
        self,
        settings: RouterSettings,
        router: str,
        store: Store,
        watch: MembershipWatch,
        placement: Placement,
        sessions: Sessions,
        log: RequestLog,
        draining: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._router = router
        self._store = store
        self._watch = watch
        self._placement = placement
        self._sessions = sessions
        self._log = log
        self._draining = draining
        self._board_key = PoolKeys(settings.pool).board
        self._hot = HotPrefixes(store, settings.pool)
        self._departures = Departures(watch)
        self._made_s = float("-inf")
        self._encoded = b""
        self._making: asyncio.Task[bytes] | None = None
        self._rings_of: RingPair | None = None
        self._rings_version = 0

    async def current(self) -> bytes:
        """A snapshot as JSON, at most half a second old."""
        if time.monotonic() - self._made_s < _FRESH_S:
            return self._encoded
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make(), name="ui-snapshot")
        # A viewer that goes away must not take it from the others.
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        try:
            self._encoded = msgspec.json.encode(await self._snapshot())
            self._made_s = time.monotonic()
            return self._encoded
        finally:
            self._making = None

    def find(self, request_id: str) -> Request | None:
        """One of the requests that are still known."""
        entry = self._log.find(request_id)
        return request_view(entry, time.monotonic()) if entry is not None else None

    def rings(self) -> Rings:
        """The rings as a picture."""
        rings = self._placement.pool.rings
        names = list(rings.members)
        number = {name: i for i, name in enumerate(names)}
        first, second = rings.sampled(RING_SLOTS)
        return Rings(
            version=self._version_of(rings),
            names=names,
            first=[number[name] for name in first],
            second=[number[name] for name in second],
        )

    def _version_of(self, rings: RingPair) -> int:
        if rings is not self._rings_of:
            self._rings_of = rings
            self._rings_version += 1
        return self._rings_version

    async def _snapshot(self) -> Snapshot:
        membership = self._watch.current
        names = tuple(sorted(membership.members))
        board = await self._board()
        views = await self._placement.views(b"", names) if names else []
        await self._hot.refresh(names, self._placement.splits)
        # From here on nothing is awaited: one moment.
        now_s, settings, placement = time.monotonic(), self._settings, self._placement
        buckets = self._log.buckets(now_s)
        whole = total(buckets)
        return Snapshot(
            at_s=time.time(),
            router=self._router,
            pool=settings.pool,
            models=sorted({member.registration.model for member in membership.members.values()}),
            policy=settings.policy,
            slo_s=settings.slo_ttft_s,
            store_available=self._store.available,
            draining=self._draining(),
            board_known=board is not None,
            leader=board.rebalancer if board is not None else None,
            rings_version=self._version_of(placement.pool.rings),
            in_flight=self._log.num_in_flight,
            instances=instance_views(self._watch, views, self._sessions, board, whole, settings.slo_ttft_s),
            gone=[Gone(name=name, age_s=age_s) for name, age_s in self._departures.recent(now_s)],
            prefixes=self._prefixes(),
            num_splits=len(placement.splits),
            moves=_moves(board),
            minutes=_minutes(buckets, whole),
            waiting=[request_view(entry, now_s) for entry in self._log.in_flight(_MOST_WAITING)],
            ended=[request_view(entry, now_s) for entry in self._log.ended(_MOST_ENDED)],
        )

    async def _board(self) -> Board | None:
        try:
            packed = await self._store.command("GET", self._board_key)
            return decode_board(packed) if packed else None
        except (StoreError, WireError):
            return None

    def _prefixes(self) -> list[Prefix]:
        hot = self._hot.found if self._store.available else self._own_hot()
        rings = self._placement.pool.rings
        return [
            Prefix(
                key=f"{prefix.key:016x}",
                share=prefix.share,
                places=places(prefix.key),
                candidates=list(rings.candidates(prefix.key)) if rings.members else [],
                outpost=prefix.outpost,
                owners=list(prefix.owners),
            )
            for prefix in hot
        ]

    def _own_hot(self) -> list[HotPrefix]:
        """Without Redis: those of this router's last requests."""
        counts: dict[int, int] = {}
        ended = self._log.ended(500)
        for entry in ended:
            if entry.placed is not None:
                counts[entry.placed.key] = counts.get(entry.placed.key, 0) + 1
        hottest = sorted(counts.items(), key=lambda item: -item[1])[:NUM_HOT]
        return [HotPrefix(key, count / len(ended)) for key, count in hottest]


def _moves(board: Board | None) -> list[MoveDone]:
    fields: list[dict[str, Any]] = [] if board is None else [msgspec.structs.asdict(m) for m in board.moves]
    return [MoveDone(**move) for move in fields]


def _minutes(buckets: list[Bucket], whole: Bucket) -> Minutes:
    # The newest bucket has just begun: a rate over it alone would jump.
    lately = buckets[-_RATE_BUCKETS - 1 : -1]
    return Minutes(
        span_s=BUCKET_S * len(buckets),
        requests=whole.requests,
        failed=whole.failed,
        rate=sum(bucket.requests for bucket in lately) / (BUCKET_S * len(lately)),
        attainment=whole.attainment,
        p50_s=whole.ttft_s(0.5),
        p90_s=whole.ttft_s(0.9),
        cached_share=whole.cached_tokens / whole.prompt_tokens if whole.prompt_tokens else None,
        moves=whole.moves,
        reasons={str(reason): count for reason, count in whole.reasons.most_common()},
        points=[
            Point(
                requests=bucket.requests,
                attainment=bucket.attainment,
                p50_s=bucket.ttft_s(0.5),
                p90_s=bucket.ttft_s(0.9),
                moves=bucket.moves,
            )
            for bucket in buckets
        ],
    )
