"""Hot queues are relieved: the right moves, once, by the leader only, whoever does not answer."""

import contextlib

import pytest

from dualmap_service.store import Store

from ...waiting import eventually
from .conftest import KEYS, Start, perf_of
from .recording_worker import RecordingWorker, hot_queue, queued


async def both_known(shared: Store) -> None:
    await eventually(lambda: perf_of(shared, "w1"))
    await eventually(lambda: perf_of(shared, "w2"))


async def test_hot_queue_moves_once_until_a_newer_report(start: Start, shared: Store) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2") as w2,
        start(cool_down_s=0.0) as running,
    ):
        await both_known(shared)
        w1.silent = True
        # 8 s of work: the last two would be late here, and take 1 s at the idle other candidate.
        w1.say(queued=hot_queue("w2"))
        await eventually(lambda: w1.calls)
        (call,) = w1.calls
        moved = {move.request_id for move in call.moves}
        assert {move.target for move in call.moves} == {"w2"}
        assert 2 <= len(moved) <= 3
        assert "r0" not in moved
        assert call.fence == int(await shared.command("GET", KEYS.key("fence")))
        await running.passes(5)
        assert len(w1.calls) == 1, "nothing newer was heard"
        assert await running.metric("hot_instances") == 0, "what the worker gave away is no longer counted"
        w1.publish()
        await eventually(lambda: len(w1.calls) == 2)
        assert not w2.calls
        labels = {"source": "w1", "target": "w2"}
        await running.above("moves_total", len(moved), outcome="done", **labels)
        assert await running.metric("moves_total", outcome="asked", **labels) == len(moved) * 2
        assert await running.metric("move_benefit_seconds_total") > 1.0
        w1.say(queued=())
        await running.passes(2)
        assert await running.metric("hot_instances") == 0
        assert len(w1.calls) == 2


async def test_cool_down_lets_telemetry_show_the_effect(start: Start, shared: Store) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2"),
        start(cool_down_s=60.0) as running,
    ):
        await both_known(shared)
        w1.say(queued=hot_queue("w2"))
        await eventually(lambda: w1.calls)
        await running.passes(5)
        assert len(w1.calls) == 1


async def test_disabled_sees_but_never_moves(start: Start, shared: Store) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2"),
        start(enabled=False) as running,
    ):
        await both_known(shared)
        w1.say(queued=hot_queue("w2"))
        await running.above("hot_instances", 0)
        await running.passes(3)
        assert not w1.calls


async def test_started_requests_count_as_late(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start() as running:
        await both_known(shared)
        w1.late = {f"r{i}" for i in range(4)}
        w1.say(queued=hot_queue("w2"))
        await running.above("moves_total", 0, source="w1", target="w2", outcome="late")
        assert await running.metric("move_benefit_seconds_total") == 0


async def test_no_request_is_asked_for_twice_of_one_report(start: Start, shared: Store) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2"),
        start(cool_down_s=0.0) as running,
    ):
        await both_known(shared)
        w1.silent = True
        w1.late = {f"r{i}" for i in range(8)}
        w1.say(queued=hot_queue("w2", 8))
        await eventually(lambda: w1.calls)
        await running.passes(6)
        # The queue stays hot, since nothing left it; each pass may ask for others only.
        asked = [move.request_id for call in w1.calls for move in call.moves]
        assert len(asked) == len(set(asked))


async def test_fenced_off_asks_who_leads(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start() as running:
        await both_known(shared)
        w1.fenced_off = True
        w1.say(queued=hot_queue("w2"))
        await running.above("moves_total", 0, source="w1", target="w2", outcome="fenced")


@pytest.mark.parametrize("why", ["draining", "held", "stale"])
async def test_no_moves_to_who_cannot_take_them(start: Start, shared: Store, why: str) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2") as w2,
        start(stale_s=0.3) as running,
    ):
        await both_known(shared)
        if why == "stale":
            w2.silent = True
            await running.passes(5)
        else:
            w2.say(**({"state": "draining"} if why == "draining" else {"held": True}))
            await running.passes(1)
        w1.say(queued=hot_queue("w2"))
        await running.above("hot_instances", 0)
        await running.passes(3)
        assert not w1.calls


async def test_stale_queue_is_not_acted_on(start: Start, shared: Store) -> None:
    async with (
        RecordingWorker(shared, "w1") as w1,
        RecordingWorker(shared, "w2"),
        start(stale_s=0.3, max_wait_s=0.6) as running,
    ):
        await both_known(shared)
        w1.silent = True
        # It would be hot for its age after 0.6 s, but by then nothing is known of it.
        w1.say(queued=(queued("r0", own_s=1.0), queued("r1", own_s=1.0)), busy_s=2.0)
        await running.passes(8)
        assert not w1.calls
        assert await running.metric("hot_instances") == 0


async def test_unresponsive_worker_does_not_hold_up_the_others(start: Start, shared: Store) -> None:
    async with contextlib.AsyncExitStack() as stack:
        w1, w2, w3 = [
            await stack.enter_async_context(RecordingWorker(shared, name)) for name in ("w1", "w2", "w3")
        ]
        running = await stack.enter_async_context(start(move_deadline_s=0.8, cool_down_s=0.0))
        await both_known(shared)
        w1.answer.clear()
        w1.say(queued=hot_queue("w3"))
        await eventually(lambda: w1.calls)
        # Still unanswered: passes go on, and another hot instance gets its relief.
        w2.say(queued=hot_queue("w3"))
        await eventually(lambda: w2.calls, 0.7)
        await running.passes(2)
        assert len(w1.calls) == 1
        await running.above("moves_total", 0, source="w1", target="w3", outcome="failed")
        w1.answer.set()
        await running.above("moves_total", 0, source="w1", target="w3", outcome="done")
        assert not w3.calls


async def test_unreachable_worker_is_counted_and_survived(start: Start, shared: Store) -> None:
    async with RecordingWorker(shared, "w1") as w1, RecordingWorker(shared, "w2"), start() as running:
        await both_known(shared)
        await w1._server.stop(None)
        w1.say(queued=hot_queue("w2"))
        await running.above("moves_total", 0, source="w1", target="w2", outcome="failed")
        await running.passes(2)
