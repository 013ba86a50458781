"""A master with Sentinels, and a Cluster, of real servers on this machine, with TLS where a server has it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from dualmap_service.ports import free_ports

from .redis_processes import Server, Servers, Tls, servers
from .waiting import eventually

MASTER = "main"
_BUS = 10000
_SLOTS = 16384
_DOWN_AFTER_MS = 1000


@dataclass
class Watched:
    """A master and its replica, watched by three Sentinels."""

    running: Servers
    data: list[Server]
    sentinels: list[Server]
    tls: Tls | None = None

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"{_scheme(self.tls, 'sentinel')}{places}/{MASTER}/0"

    async def master(self) -> Server:
        """Who is the master by the first Sentinel that lives."""
        _, port = await self.sentinels[-1].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(server for server in self.data if server.port == int(port))


@contextlib.asynccontextmanager
async def watched_master(folder: Path, tls: Tls | None = None) -> AsyncIterator[Watched]:
    async with servers(folder) as running:
        first = free_ports(5)
        ports = range(first, first + 5)
        data = [await _server(running, ports[0], tls, "--repl-diskless-sync-delay", "0")]
        data.append(await _server(running, ports[1], tls, "--replicaof", f"127.0.0.1 {ports[0]}"))
        lines = (
            f"sentinel monitor {MASTER} 127.0.0.1 {ports[0]} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
        )
        sentinels = [await _sentinel(running, port, tls, lines) for port in ports[2:]]
        watched = Watched(running, data, sentinels, tls)

        async def acquainted() -> bool:
            states = [await _state(sentinel) for sentinel in sentinels]
            return all((s["num-other-sentinels"], s["num-slaves"]) == ("2", "1") for s in states)

        await eventually(acquainted, 30.0)
        await eventually(lambda: _linked(data[1]), 30.0)
        yield watched


def _scheme(tls: Tls | None, kind: str) -> str:
    return f"redis+{kind}://" if tls is None else f"rediss+{kind}://:{tls.password}@"


async def _server(running: Servers, port: int, tls: Tls | None, *config: str) -> Server:
    if tls is None:
        return await running.start(port, *config)
    encrypted = ("--port", "0", "--tls-port", str(port), *tls.server_config)
    return await running.start(port, *encrypted, *config, program=tls.program, **tls.client(tls.password))


async def _sentinel(running: Servers, port: int, tls: Tls | None, lines: str) -> Server:
    if tls is None:
        return await running.start(port, lines=lines)
    lines += tls.sentinel_lines(port, MASTER)
    return await running.start(port, lines=lines, program=tls.program, **tls.client(tls.sentinel_password))


async def _state(sentinel: Server) -> dict[str, str]:
    """What a Sentinel knows of the master."""
    texts = [item.decode() for item in await sentinel.ask("SENTINEL", "MASTER", MASTER)]
    return dict(zip(texts[::2], texts[1::2], strict=True))


async def _linked(replica: Server) -> bool:
    return (await replica.info("INFO", "replication")).get("master_link_status") == "up"


@dataclass
class Cluster:
    """Three masters with a replica each."""

    running: Servers
    masters: list[Server]
    replicas: list[Server]
    tls: Tls | None = None

    @property
    def nodes(self) -> list[Server]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        return self.url_of(self.masters)

    def url_of(self, nodes: Sequence[Server]) -> str:
        return _scheme(self.tls, "cluster") + ",".join(f"127.0.0.1:{node.port}" for node in nodes)

    async def owner(self, key: str) -> Server:
        """The node that holds a key's slot, as those that live say."""
        slot = await self._any("CLUSTER", "KEYSLOT", key)
        for first, last, master, *_ in await self._any("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody owns slot {slot}")

    async def _any(self, *command: object) -> object:
        for node in self.nodes:
            if node.run is not None:
                return await node.ask(*command)
        raise AssertionError("all nodes are gone")


@contextlib.asynccontextmanager
async def cluster(folder: Path, tls: Tls | None = None) -> AsyncIterator[Cluster]:
    async with servers(folder) as running:
        config = (
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(_DOWN_AFTER_MS),
            "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
            # Of a lost shard only its own pools are told.
            "--cluster-require-full-coverage", "no", *(("--tls-cluster", "yes") if tls is not None else ()),
        )  # fmt: skip
        first = free_ports(6, also=_BUS)
        nodes = [await _server(running, port, tls, *config) for port in range(first, first + 6)]
        made = Cluster(running, nodes[:3], nodes[3:], tls)
        for epoch, node in enumerate(nodes, 1):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            await node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        share = -(-_SLOTS // 3)
        for index, master in enumerate(made.masters):
            last = min((index + 1) * share, _SLOTS) - 1
            await master.ask("CLUSTER", "ADDSLOTSRANGE", index * share, last)
        for master, replica in zip(made.masters, made.replicas, strict=True):
            name = (await master.ask("CLUSTER", "MYID")).decode()
            await eventually(lambda name=name, replica=replica: _replicates(replica, name), 30.0)
        await eventually(lambda: _settled(made), 30.0)
        yield made


async def _replicates(replica: Server, master: str) -> bool:
    try:
        await replica.ask("CLUSTER", "REPLICATE", master)
    except RedisError:
        await asyncio.sleep(0.05)  # it has not heard of that node yet
        return False
    return True


async def _settled(made: Cluster) -> bool:
    """Everybody knows all slots and has its replica."""
    for node in made.nodes:
        info = await node.info("CLUSTER", "INFO")
        if (info["cluster_state"], info["cluster_slots_assigned"]) != ("ok", str(_SLOTS)):
            return False
        shards = await node.ask("CLUSTER", "SLOTS")
        if sorted(len(shard) for shard in shards) != [4, 4, 4]:
            return False
    return all([await _linked(replica) for replica in made.replicas])
