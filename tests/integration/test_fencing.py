"""Two rebalancers that both take themselves for the leader: a worker obeys the later one and no other."""

from dualmap_cli.stack import Stack, StackOptions
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

from .load_checks import (
    assert_all_once,
    assert_at_rest,
    control,
    holds,
    prompts,
    set_faults,
    under_load,
    until,
)

SOURCE, TARGET = "worker-1", "worker-2"


async def waiting(stub: WorkerControlStub) -> list[str]:
    """What the source holds, in serving order."""
    return [entry.request_id for entry in (await stub.ListQueue(pb.ListQueueRequest(), timeout=10)).entries]


async def migrate(stub: WorkerControlStub, request_id: str, fence: int) -> pb.MigrateReply:
    """Ask for one move as the leader of that fence."""
    moves = [pb.MigrateMove(request_id=request_id, target=TARGET)]
    reply: pb.MigrateReply = await stub.Migrate(pb.MigrateRequest(moves=moves, fence=fence), timeout=10)
    return reply


async def test_a_worker_that_has_obeyed_a_leader_ignores_those_before_it() -> None:
    async with Stack(StackOptions(routers=1, workers=2, rebalancers=0, time_scale=8.0)) as stack:
        async with under_load(
            stack, (prompts("fenced", rate_req_s=50.0, count=16, tokens=4096), True)
        ) as load:
            await set_faults(stack.engine_urls[0], slow_down=40.0)
            await until(lambda: holds(stack, SOURCE, queued=4), 20, f"a queue on {SOURCE}")
            async with control(stack, SOURCE) as stub:
                # 1. The leader of the fence 5 is obeyed, and its fence is remembered.
                *_, stays, goes = await waiting(stub)
                reply = await migrate(stub, goes, fence=5)
                assert (list(reply.moved), reply.fenced_off) == ([goes], False)
                # 2. One that led before is told so; what it asks for stays where it is.
                reply = await migrate(stub, stays, fence=4)
                assert (list(reply.moved), reply.fenced_off) == ([], True)
                assert stays in await waiting(stub)
                # 3. Nor has it taken the fence back: the leader goes on leading, and a later one may follow.
                another = next(name for name in reversed(await waiting(stub)) if name != stays)
                assert list((await migrate(stub, another, fence=5)).moved) == [another]
                assert (await migrate(stub, "nobody", fence=6)).fenced_off is False
                assert (await migrate(stub, stays, fence=5)).fenced_off is True
                assert stays in await waiting(stub)
            await set_faults(stack.engine_urls[0], reset=True)
            records = {record.request_id: record for record in await load.records()}
        moves = {name: (records[name].instance, records[name].moves) for name in (goes, another, stays)}
        assert moves == {goes: (TARGET, 1), another: (TARGET, 1), stays: (SOURCE, 0)}
        await assert_all_once(stack, list(records.values()))
        await assert_at_rest(stack)
