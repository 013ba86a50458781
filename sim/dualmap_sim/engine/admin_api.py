"""/admin: what a test does to an engine, and what it asks it. A real engine has none of this."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from dualmap_sim.engine.realtime import SimEngine
from dualmap_sim.engine.transport import json_reply


class AdminApi:
    """The admin endpoints of one engine; `crash` is how its host lets it die."""

    def __init__(self, engine: SimEngine, crash: Callable[[], None]) -> None:
        self._engine = engine
        self._crash = crash

    def routes(self) -> list[web.RouteDef]:
        """The endpoints' routes."""
        return [
            web.get("/admin/faults", self.show_faults),
            web.post("/admin/faults", self.set_faults),
            web.post("/admin/crash", self.crash),
            web.post("/admin/reset_cache", self.reset_cache),
            web.post("/reset_prefix_cache", self.reset_cache),
            web.get("/admin/stats", self.stats),
        ]

    async def show_faults(self, _: web.Request) -> web.Response:
        """GET /admin/faults: the faults in force."""
        return json_reply(msgspec.to_builtins(self._engine.faults.settings))

    async def set_faults(self, http: web.Request) -> web.Response:
        """POST /admin/faults: change the named ones; see FaultSettings."""
        return json_reply(msgspec.to_builtins(self._engine.faults.update(await http.read())))

    async def crash(self, http: web.Request) -> web.StreamResponse:
        """POST /admin/crash: answer, then die: listener closed and every stream cut, or the process gone."""
        reply = json_reply({"crashing": True})
        await reply.prepare(http)
        await reply.write_eof()
        # A turn of the loop later, so that this handler is not cut by what it sets off.
        asyncio.get_running_loop().call_soon(self._crash)
        return reply

    async def reset_cache(self, _: web.Request) -> web.Response:
        """POST /admin/reset_cache: forget all prefixes, also those that running requests hold."""
        self._engine.clear_cache()
        return json_reply({"success": True})

    async def stats(self, http: web.Request) -> web.Response:
        """GET /admin/stats: the books; `?requests=0` leaves out the rows per request."""
        with_requests = http.query.get("requests", "1") != "0"
        return json_reply(engine_stats(self._engine, with_requests=with_requests))


def engine_stats(engine: SimEngine, *, with_requests: bool = True) -> dict[str, Any]:
    """Everything that an engine counts; `leftovers` is all zero once traffic has drained."""
    model, ledger = engine.model, engine.ledger
    stats: dict[str, Any] = {
        "totals": msgspec.to_builtins(ledger.totals),
        "open": ledger.open,
        "peak_open": ledger.peak_open,
        "running": model.num_running,
        "waiting": model.num_waiting,
        "steps": engine.num_steps,
        "busy_s": model.busy_s,
        "max_lag_s": engine.max_lag_s,
        "prompt_tokens": model.prompt_tokens,
        "cached_tokens": model.cached_tokens,
        "prefill_tokens": model.prefill_tokens,
        "generated_tokens": model.generated_tokens,
        "preemptions": model.num_preemptions,
        "cached_blocks": model.cache.num_cached,
        "num_blocks": model.cache.num_blocks,
        "leftovers": {
            "requests": ledger.open,
            "sequences": len(tuple(model.request_ids())),
            "listeners": engine.num_listeners,
            "pinned_blocks": model.cache.num_blocks - model.cache.num_free,
        },
    }
    if with_requests:
        stats["requests"] = {key: msgspec.to_builtins(record) for key, record in ledger.requests.items()}
    return stats
