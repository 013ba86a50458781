"""The store follows a pool from server to server: failovers, a replaced master, a slot that moves."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from dualmap_service.access import AccessSettings
from dualmap_service.errors import StoreUnavailableError
from dualmap_service.redis_servers import redis_client
from dualmap_service.store import Store
from dualmap_wire.redis_keys import PoolKeys

from ...redis_processes import Server
from ...redis_topologies import MASTER, Cluster, Watched, cluster, watched_master
from ...waiting import eventually

KEYS = PoolKeys("p")


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with watched_master(tmp_path) as made:
        yield made


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


def access(url: str) -> AccessSettings:
    return AccessSettings(redis_url=url, pool="p")


async def ticket(store: Store) -> int | None:
    """The next number that the pool's server gives out; None while it cannot be reached."""
    try:
        await store.function("members", KEYS.prefix, "", 3000)
        return int(await store.command("INCR", KEYS.key("ticket")))
    except StoreUnavailableError:
        return None


async def served_by(store: Store, server: Server) -> bool:
    """Whether the store's next number is that server's."""
    number = await ticket(store)
    try:
        return number is not None and int(await server.ask("GET", KEYS.key("ticket")) or 0) == number
    except RedisError:
        return False


async def test_a_failover_on_demand(watched: Watched) -> None:
    store = Store(access(watched.url), "test")
    try:
        assert await store.start()
        assert await served_by(store, watched.data[0])
        await watched.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER)
        await eventually(lambda: served_by(store, watched.data[1]), 20.0)
        # The one before lives on, as a replica; whoever asks it is sent on.
        assert b"slave" in await eventually(lambda: _demoted(watched.data[0]), 20.0)
        assert await served_by(store, watched.data[1])
        async with redis_client(access(watched.url)) as client:
            assert await client.get(KEYS.key("ticket")) == str(await ticket(store) - 1).encode()  # type: ignore[operator]
    finally:
        await store.close()


async def _demoted(server: Server) -> Any:
    role = (await server.ask("ROLE"))[0]
    return role if role == b"slave" else None


async def test_a_master_that_does_not_know_that_it_was_replaced(watched: Watched) -> None:
    """As behind a partition: it goes on taking writes, only the Sentinels know better."""
    store = Store(access(watched.url), "test")
    old, new = watched.data
    try:
        assert await store.start()
        assert await served_by(store, old)
        for sentinel in watched.sentinels:
            await sentinel.ask("SENTINEL", "REMOVE", MASTER)
        await new.ask("REPLICAOF", "NO", "ONE")
        for sentinel in watched.sentinels:
            await sentinel.ask("SENTINEL", "MONITOR", MASTER, "127.0.0.1", new.port, 2)
        await eventually(lambda: served_by(store, new))
        assert (await old.ask("ROLE"))[0] == b"master"
    finally:
        await store.close()


async def test_sentinels_that_are_gone_are_passed_over(watched: Watched) -> None:
    for sentinel in watched.sentinels[:2]:
        sentinel.kill()
    store = Store(access(watched.url), "test")
    try:
        assert await store.start()
        assert await served_by(store, watched.data[0])
    finally:
        await store.close()
    watched.sentinels[2].kill()
    store = Store(access(watched.url), "test")
    assert not await store.start(wait_s=0.5)
    await store.close()
    with pytest.raises(RedisError):
        async with redis_client(access(watched.url)):
            pass


async def test_any_node_leads_to_the_owner(nodes: Cluster) -> None:
    owner = await nodes.owner(KEYS.prefix)
    for node in nodes.nodes:
        store = Store(access(nodes.url_of([node])), "test")
        try:
            assert await store.start()
            assert await served_by(store, owner)
        finally:
            await store.close()
        async with redis_client(access(nodes.url_of([node]))) as client:
            assert await client.get(KEYS.key("ticket"))


async def test_nodes_that_the_url_does_not_name_are_known_too(nodes: Cluster) -> None:
    owner = await nodes.owner(KEYS.prefix)
    replica = nodes.replicas[nodes.masters.index(owner)]
    store = Store(access(nodes.url_of([owner])), "test")
    try:
        assert await store.start()
        owner.kill()
        await eventually(lambda: served_by(store, replica), 20.0)
    finally:
        await store.close()


async def test_a_node_that_freezes_is_passed_over(nodes: Cluster) -> None:
    owner = await nodes.owner(KEYS.prefix)
    replica = nodes.replicas[nodes.masters.index(owner)]
    store = Store(access(nodes.url), "test", deadline_s=0.2)
    try:
        assert await store.start()
        owner.freeze()
        await eventually(lambda: served_by(store, replica), 40.0)
        # Whoever begins now asks it first, and does without its answer.
        beginner = Store(access(nodes.url_of([owner, replica])), "beginner")
        assert await beginner.start(10.0)
        await beginner.close()
    finally:
        await store.close()


async def test_a_failover_on_demand_in_a_cluster(nodes: Cluster) -> None:
    owner = await nodes.owner(KEYS.prefix)
    replica = nodes.replicas[nodes.masters.index(owner)]
    store = Store(access(nodes.url), "test")
    try:
        assert await store.start()
        assert await served_by(store, owner)
        await replica.ask("CLUSTER", "FAILOVER")
        await eventually(lambda: served_by(store, replica), 20.0)
    finally:
        await store.close()


async def test_a_slot_that_moves_key_by_key(nodes: Cluster) -> None:
    source = await nodes.owner(KEYS.prefix)
    target = next(node for node in nodes.masters if node is not source)
    slot = await source.ask("CLUSTER", "KEYSLOT", KEYS.prefix)
    names = {node: (await node.ask("CLUSTER", "MYID")).decode() for node in (source, target)}
    store = Store(access(nodes.url), "test")
    try:
        assert await store.start()
        assert await ticket(store) == 1
        await store.function("lead", KEYS.prefix, "somebody", 60000)
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        # Neither has all of it: whoever asked the target would make anew there what has not come yet.
        assert await ticket(store) is None
        keys = await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        assert len(keys) > 2
        for key in keys[:-1]:
            await source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        assert await ticket(store) is None
        await source.ask("MIGRATE", "127.0.0.1", target.port, keys[-1], 0, 5000)
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target])
        await eventually(lambda: served_by(store, target))
        # All of it has come: the numbers go on, and the lead is still held.
        assert await store.command("GET", KEYS.key("leader")) == b"somebody"
        assert int(await store.command("GET", KEYS.key("ticket"))) >= 2
    finally:
        await store.close()
