"""The decision itself, from the body read to the frame sent: by rate, with Redis next door and a millisecond away.

Two routers of one system take turns, one of which reaches Redis by a way that takes half a millisecond each way
(`far`). What the system around them can do bounds the rate, so bodies are short here: a kilobyte.
"""

import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from bench.router.client import Spec, load
from bench.router.histogram import DECISION, buckets, quantile, scrape, total
from bench.router.measures import Effort, Findings
from bench.router.subjects import ROUTER
from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.child import start_child

RATES = (100.0, 1000.0)
_EACH_WAY_MS = 0.5
_BODY_BYTES = 1024
_ALONE = "dualmap_local_decisions_total"


async def decisions(
    time_scale: float, engine_flags: Sequence[str], effort: Effort, findings: Findings
) -> None:
    """Add p50 and p99 at each rate and distance, and the share that was decided without Redis for its lateness."""
    async with Stack(
        StackOptions(workers=2, routers=1, time_scale=time_scale, engine_flags=engine_flags)
    ) as stack:
        urls = {"Redis local": stack.router_urls[0], "Redis 1 ms further": await _far_router(stack)}
        first = 10**8
        for repeat in range(-1, effort.repeats):
            for rate in RATES:
                for where, url in urls.items():
                    first += 10**6
                    before = await scrape(url)
                    spec = Spec(
                        url=url, watch={}, rate=rate, window_s=effort.window_s, first=first, body_bytes=_BODY_BYTES
                    )  # fmt: skip
                    result = await load(spec)
                    after = await scrape(url)
                    if repeat < 0:
                        continue  # the warm-up
                    what = f"{rate:,.0f}/s, {where}"
                    findings.take(f"decision {what}", result, rate)
                    for share, name in ((0.5, "p50"), (0.99, "p99")):
                        value = quantile(buckets(before, DECISION), buckets(after, DECISION), share) or 0.0
                        findings.add(f"decision {name}, {what}", ROUTER, "ms", value * 1e3)
                    alone = (total(after, _ALONE) - total(before, _ALONE)) / max(result.requests, 1)
                    findings.add(f"decided without Redis, {what}", ROUTER, "%", alone * 100)
        left = await settle(stack.redis_url, stack.options.pool, stack.router_urls)
        if not left.clean:
            raise RuntimeError(f"the system holds what it should not: {left}")


async def _far_router(stack: Stack) -> str:
    """Start a router that is further from Redis; returns its URL."""
    redis = urlsplit(stack.redis_url)
    command = [
        sys.executable, "-m", "bench.router.far",
        "--to", f"{redis.hostname}:{redis.port}", "--ms", str(_EACH_WAY_MS),
    ]  # fmt: skip
    # The stack stops it with its workers, behind the routers.
    stack.children["worker-far"] = start_child(command, "worker-far", stack.logs / "worker-far.log")
    port = (await stack.line("worker-far", lambda line: "port" in line))["port"]
    name = stack.start_router(redis_url=redis._replace(netloc=f"127.0.0.1:{port}").geturl())
    ready = await stack.event(name, "router.ready")
    stack.router_urls.append(str(ready["url"]))
    await stack.wait_ready(2)
    return stack.router_urls[-1]
