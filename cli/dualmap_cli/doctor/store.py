"""The store, and who leads in it."""

import time
from collections.abc import AsyncIterator
from typing import Any

from dualmap_cli.doctor.clocks import Clocks, GoesBy
from dualmap_cli.doctor.finding import Finding
from dualmap_wire.redis_functions import library
from dualmap_wire.redis_keys import PoolKeys


async def store_findings(redis: Any, keys: PoolKeys, clocks: Clocks) -> AsyncIterator[Finding]:
    """How the store is; RedisError or OSError when it does not answer."""
    info = await redis.info("server")
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    name = "Valkey" if "valkey_version" in info else "Redis"
    old = int(version.split(".")[0]) < 7
    yield Finding(
        "bad" if old else "ok",
        "store",
        f"{name} {version}",
        "Functions need Redis 7 or Valkey 8." if old else "",
    )
    asked_s = time.time()
    seconds, microseconds = await redis.time()
    clocks.read("store", GoesBy.STORE, seconds + microseconds / 1e6, asked_s, time.time())
    loaded = await redis.execute_command("FUNCTION", "LIST", "LIBRARYNAME", f"dualmap_{library()[0]}")
    yield (
        Finding("ok", "functions", f"this release's library, {library()[0]}, is loaded")
        if loaded
        else Finding(
            "warn",
            "functions",
            "this release's library is not loaded",
            "A service of this release loads it when it starts.",
        )
    )
    leader = await redis.get(keys.key("leader"))
    yield (
        Finding("ok", "rebalancer", f"{leader.decode()} leads")
        if leader
        else Finding(
            "bad",
            "rebalancer",
            "nobody leads",
            "Start `dualmap rebalancer`: without it nothing moves and telemetry goes stale.",
        )
    )
