"""One test per line of DESIGN section 8: the fault alone, under load, and what its line says of it."""

import asyncio
import time
from statistics import median

import aiohttp
import pytest

from dualmap_wire.redis_keys import PoolKeys

from ..integration.load_checks import metric, until
from . import faults
from .load import Mix
from .trial import Planned, run_trial
from .world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

_REAPED_S = 5.0
_LEADS_S = 5.0


async def test_1_what_a_dead_worker_or_engine_had_is_answered_elsewhere(world: World) -> None:
    lanes = [
        [Planned(2.0, 2.0, faults.KillWorker("worker-1"))],
        [Planned(3.0, 2.0, faults.KillEngine("engine-2"))],
    ]
    outcome = await run_trial(world, lanes, 7.0, mix=Mix(chats=5, wholes=4, longs=0))
    outcome.check()
    assert not any(record.retried for record in outcome.records)


async def test_2_a_stream_whose_engine_dies_goes_on(world: World) -> None:
    before = sum([await metric(url, "dualmap_resumed_streams_total") for url in world.router_urls])
    lanes = [
        [Planned(1.0 + n / 2, 1.0, faults.DiesHalfWay(worker))] for n, worker in enumerate(world.workers)
    ]
    lanes.append([Planned(4.0, 1.0, faults.KillEngine("engine-3"))])
    outcome = await run_trial(world, lanes, 6.0, mix=Mix(chats=4, wholes=0, longs=4))
    outcome.check()
    assert not any(record.retried for record in outcome.records)
    assert sum([await metric(url, "dualmap_resumed_streams_total") for url in world.router_urls]) > before + 3


async def test_3_a_dead_routers_clients_ask_another_and_its_charges_are_reaped(world: World) -> None:
    async def num_charges() -> int:
        async with world.redis() as redis:
            return int(await redis.hlen(PoolKeys(world.options.pool).router_charges("router-2")))

    class KilledWithCharges(faults.KillRouter):
        """Killed while it has charges."""

        async def apply(self, world: World) -> None:
            await until(num_charges, 5.0, "a charge of router-2")
            await super().apply(world)
            killed_s = time.monotonic()
            # What counts is that the dead one's are gone: it stays dead meanwhile.
            await until(no_charges, _REAPED_S + 1.0, "reaped charges")
            self.took_s = time.monotonic() - killed_s

    async def no_charges() -> bool:
        return await num_charges() == 0

    fault = KilledWithCharges("router-2")
    outcome = await run_trial(world, [[Planned(1.0, 0.0, fault)]], 7.0, mix=Mix(chats=8, wholes=2, longs=1))
    outcome.check()
    assert fault.took_s <= _REAPED_S
    assert any(record.retried for record in outcome.records)


@pytest.mark.parametrize("fault", [faults.KillLeader, faults.FreezeLeader, faults.LeaderFromStore])
async def test_4_a_standby_leads_within_five_seconds(world: World, fault: type[faults.Fault]) -> None:
    class Followed(fault):  # type: ignore[misc,valid-type]
        """Waits for another leader before it is healed."""

        async def apply(self, world: World) -> None:
            await super().apply(world)
            began_s = time.monotonic()

            async def another() -> bool:
                return await world.leader() not in (None, self.part)

            await until(another, _LEADS_S + 1.0, "another leader")
            self.took_s = time.monotonic() - began_s

    one = Followed()
    outcome = await run_trial(world, [[Planned(1.0, 0.5, one)]], 5.0)
    outcome.check()
    assert one.took_s <= _LEADS_S
    assert not any(record.retried for record in outcome.records)
    # The one that woke up stands by: `whole` has seen one leader, and it is not that one.
    assert await world.leader() != one.part


async def test_5_no_request_notices_what_happens_to_the_store(world: World) -> None:
    kinds = (
        faults.StoreDies,
        faults.StoreForgets,
        faults.StoreIsFull,
        faults.StoreLosesFunctions,
        faults.StoreDrags,
        faults.StoreFreezes,
        faults.StoreDrops,
    )
    lane = [Planned(1.0 + 2.0 * n, 1.0, kind()) for n, kind in enumerate(kinds)]
    before = sum([await metric(url, "dualmap_local_decisions_total") for url in world.router_urls])
    outcome = await run_trial(world, [lane], 15.0)
    outcome.check()
    assert not any(record.retried for record in outcome.records)
    alone = sum([await metric(url, "dualmap_local_decisions_total") for url in world.router_urls]) - before
    assert 0 < alone < len(outcome.records)


async def test_6_lost_or_late_telemetry_costs_no_answer(world: World) -> None:
    kinds = (
        faults.TelemetryIsLate,
        faults.TelemetryIsSwapped,
        faults.TelemetryIsDoubled,
        faults.TelemetryIsLost,
    )
    lane = [Planned(0.5 + 1.5 * n, 1.0, kind()) for n, kind in enumerate(kinds)]
    # Beyond what counts as stale.
    lane.append(Planned(7.0, 5.5, faults.TelemetryIsSilent()))
    spoilt = sum(relay.num_spoilt for relay in world.relays.values())
    outcome = await run_trial(world, [lane], 12.0)
    outcome.check()
    assert not any(record.retried for record in outcome.records)
    assert sum(relay.num_spoilt for relay in world.relays.values()) > spoilt + 100


async def test_7_an_engine_stops_when_its_client_goes_away(world: World) -> None:
    async def open_requests() -> int:
        return sum([int((await world.engine_stats(worker))["open"]) for worker in world.workers])

    stopped_s = []
    async with aiohttp.ClientSession() as http:
        for number in range(7):
            body = {
                "model": "sim-model",
                "prompt": f"leaving {number}",
                "max_tokens": 4000,
                "stream": True,
                "ignore_eos": True,
            }
            answer = await http.post(f"{world.router_urls[0]}/v1/completions", json=body)
            await answer.content.read(64)
            assert await open_requests() == 1
            left_s = time.monotonic()
            answer.close()
            while await open_requests():
                assert time.monotonic() - left_s < 5.0
                await asyncio.sleep(0.005)
            stopped_s.append(time.monotonic() - left_s)
    assert median(stopped_s) < 0.1, stopped_s
    lanes = [
        [Planned(0.5, 0.5, faults.ClientsVanish())],
        [Planned(1.0, 0.5, faults.ClientsVanishUnanswered())],
        [Planned(1.5, 2.0, faults.ClientsDawdle())],
        [Planned(2.0, 1.0, faults.ConnectionStorm())],
    ]
    outcome = await run_trial(world, lanes, 4.0)
    outcome.check()
    assert not any(record.retried for record in outcome.records)


async def test_9_what_is_told_to_stop_finishes_first(world: World) -> None:
    lanes = [
        [Planned(1.5, 0.0, faults.RestartWorker("worker-2"))],
        [Planned(2.0, 0.0, faults.RestartRouter("router-1"))],
        [Planned(2.5, 0.0, faults.RestartLeader())],
    ]
    outcome = await run_trial(world, lanes, 7.0, mix=Mix(chats=4, wholes=1, longs=2))
    outcome.check()


async def test_2_a_router_that_loses_every_worker_for_a_moment_breaks_nothing(world: World) -> None:
    lanes = [
        [Planned(1.5 + number, 0.3, faults.RouterFromWorkers(router))]
        for number, router in enumerate(world.routers)
    ]
    outcome = await run_trial(world, lanes, 5.0, mix=Mix(chats=3, wholes=3, longs=4))
    outcome.check()
    # Only who comes in that moment is turned away.
    assert not {error for record in outcome.records for error in record.retried} - {"http_503"}


async def test_2_a_stream_waits_longer_than_a_request_that_another_router_can_answer(world: World) -> None:
    lanes = [[Planned(1.5, 7.0, faults.RouterFromWorkers("router-1"))]]
    outcome = await run_trial(world, lanes, 4.0, mix=Mix(chats=2, wholes=2, longs=4))
    outcome.check()
    assert not {error for record in outcome.records for error in record.retried} - {"http_503"}
    print(
        [
            (r.request_id[-8:], r.router, r.e2e_s, r.max_gap_s, r.due_s, r.reason, r.retried)
            for r in outcome.records
        ]
    )
    assert max(record.max_gap_s or 0.0 for record in outcome.records) > 5.0


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
async def test_10_wall_clocks_that_are_set_change_nothing(world: World, ahead_s: float) -> None:
    """Of every part at once; an engine that comes back meanwhile is a newer generation, whatever time it is."""

    class Steps(faults.ClockSteps):
        """To that time."""

    Steps.ahead_s = ahead_s
    parts = (*world.workers, *world.routers, *world.rebalancers)
    lanes = [[Planned(1.0, 8.0, Steps(part))] for part in parts]
    lanes.append([Planned(2.0, 2.0, faults.KillEngine("engine-1"))])
    began = len(world.logged("registry.name_taken"))
    outcome = await run_trial(world, lanes, 9.0, mix=Mix(chats=4, wholes=2, longs=1))
    outcome.check()
    assert not any(record.retried for record in outcome.records)
    assert len(world.logged("registry.name_taken")) == began
