"""The notice board: the leader tells people twice a second what it has heard and what it has moved."""

import logging
import time
from collections import deque

from dualmap.rebalance import Move
from dualmap_rebalancer.leadership import Leadership
from dualmap_rebalancer.metrics import Outcome
from dualmap_rebalancer.telemetry import Heard, Telemetry
from dualmap_service.errors import StoreError
from dualmap_service.store import Store
from dualmap_wire.board import BOARD_MS, MAX_MOVES, Board, Posted, PostedMove, encode_board
from dualmap_wire.redis_keys import PoolKeys

log = logging.getLogger(__name__)


class MoveLog:
    """The last moves, and which instances are hot."""

    def __init__(self) -> None:
        self._moves: deque[tuple[Move, Outcome, float]] = deque(maxlen=MAX_MOVES)
        self.hot: tuple[str, ...] = ()

    def add(self, move: Move, outcome: Outcome) -> None:
        """A move was answered, or was not."""
        self._moves.appendleft((move, outcome, time.monotonic()))

    def posted(self, now_s: float) -> tuple[PostedMove, ...]:
        """As the board tells them."""
        return tuple(
            PostedMove(
                request_id=move.request_id,
                source=move.source,
                target=move.target,
                benefit_s=move.benefit_s,
                outcome=str(outcome),
                age_s=now_s - at_s,
            )
            for move, outcome, at_s in self._moves
        )


class Noticeboard:
    """Writes the board while this process leads. A deposed leader's last writing misleads nobody for long."""

    def __init__(
        self,
        store: Store,
        pool: str,
        rebalancer: str,
        leadership: Leadership,
        telemetry: Telemetry,
        moves: MoveLog,
    ) -> None:
        self._store = store
        self._key = PoolKeys(pool).board
        self._rebalancer = rebalancer
        self._leadership = leadership
        self._telemetry = telemetry
        self._moves = moves

    async def step(self) -> None:
        """Write it once."""
        if self._leadership.fence is None:
            return
        now_s = time.monotonic()
        board = Board(
            rebalancer=self._rebalancer,
            hot=self._moves.hot,
            instances=_posted(self._telemetry, now_s),
            moves=self._moves.posted(now_s),
        )
        try:
            await self._store.command("SET", self._key, encode_board(board), "PX", BOARD_MS)
        except StoreError as exc:
            log.debug("board.failed", extra={"error": str(exc)})


def _posted(telemetry: Telemetry, now_s: float) -> dict[str, Posted]:
    return {name: _of(heard, now_s) for name, heard in telemetry.heard.items()}


def _of(heard: Heard, now_s: float) -> Posted:
    report = heard.report
    return Posted(
        age_s=now_s - heard.received_s,
        queued=report.queued_total,
        busy_s=report.busy_s,
        oldest_s=max((queued.waited_s for queued in report.queued), default=0.0),
        late=sum(not queued.feasible for queued in report.queued),
        engine_running=report.engine_running,
        engine_waiting=report.engine_waiting,
        kv_use=report.kv_use,
        held=report.held,
        owned_chunks=report.owned_chunks,
        preemptions=report.preemptions,
        fit_samples=report.fit_samples,
        fit_residual=report.fit_residual,
    )
