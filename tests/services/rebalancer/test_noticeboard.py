"""The leader posts what it hears; nobody else does, and it fades when nobody does."""

from dualmap_service.store import Store
from dualmap_wire.board import BOARD_MS, Board, decode_board

from ...waiting import eventually
from .conftest import KEYS, Start, perf_of
from .recording_worker import RecordingWorker, hot_queue, queued


async def board_of(shared: Store) -> Board | None:
    packed = await shared.command("GET", KEYS.board)
    return decode_board(packed) if packed else None


async def test_the_board_says_what_workers_report(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as worker, start(enabled=False):
        worker.say(
            kv_use=0.5,
            held=True,
            queued_total=2,
            queued=(queued("a", waited_s=1.0), queued("b", waited_s=2.5, feasible=False)),
        )

        async def seen() -> Board | None:
            board = await board_of(shared)
            return board if board is not None and board.instances and board.instances["w1"].queued else None

        board = await eventually(seen)
        posted = board.instances["w1"]
        assert (posted.queued, posted.late, posted.oldest_s) == (2, 1, 2.5)
        assert (posted.kv_use, posted.held) == (0.5, True)
        assert 0 <= posted.age_s < 5
        assert 0 < await shared.command("PTTL", KEYS.board) <= BOARD_MS


async def test_moves_are_posted_with_what_became_of_them(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start():
        await eventually(lambda: perf_of(shared, "w2"))
        w1.late = {"r3"}
        w1.say(queued=hot_queue("w2"))

        async def moved() -> Board | None:
            board = await board_of(shared)
            return board if board is not None and board.moves else None

        board = await eventually(moved)
        outcomes = {move.request_id: move.outcome for move in board.moves}
        assert outcomes["r3"] == "late"
        assert "done" in outcomes.values()
        assert {(move.source, move.target) for move in board.moves} == {("w1", "w2")}
        assert all(move.benefit_s > 0 for move in board.moves)


async def test_only_the_leader_posts(start: Start, shared: Store) -> None:
    async with start() as leader, start(leads=False):
        first = await eventually(lambda: board_of(shared))
        await shared.command("DEL", KEYS.board)
        again = await eventually(lambda: board_of(shared))
        assert again.rebalancer == first.rebalancer
        assert await leader.metric("leader") == 1
