"""The measures: what is loaded how, and what is read off."""

import asyncio
import statistics
from collections.abc import Callable, Sequence

import msgspec
from redis.asyncio import Redis

from bench.router.client import Result, Spec, load
from bench.router.clocks import cpu_s, rss_bytes
from bench.router.histogram import DECISION, buckets, quantile, scrape
from bench.router.subjects import ROUTER, Bench, Subject
from dualmap_cli.leftovers import settle

RATE = 300.0
STREAMS = 64
CHUNKS_PER_S = 50.0
_LAG_LIMIT_S = 0.02
_MACHINE_LIMIT = 0.9
_RATE_LIMIT = 0.95


class Effort(msgspec.Struct, frozen=True):
    """How long to measure."""

    repeats: int = 3
    idle_s: float = 1.5
    window_s: float = 6.0
    prompts: int = 50_000


QUICK = Effort(idle_s=0.7, window_s=2.5, prompts=6_000)


class Figure(msgspec.Struct, frozen=True):
    """One figure of one subject: every repetition's value."""

    measure: str
    subject: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The middle repetition."""
        return statistics.median(self.values)


class Findings(msgspec.Struct):
    """All figures, and what speaks against trusting them."""

    figures: list[Figure] = []
    doubts: list[str] = []
    results: dict[str, list[Result]] = {}
    """What the load client saw, by measure and subject."""

    def add(self, measure: str, subject: str, unit: str, value: float) -> None:
        """Take one repetition's value."""
        for figure in self.figures:
            if (figure.measure, figure.subject) == (measure, subject):
                figure.values.append(value)
                return
        self.figures.append(Figure(measure, subject, unit, [value]))

    def take(self, what: str, result: Result, expected_per_s: float) -> None:
        """Keep a client's result, and doubt it where client, machine or engines were at their limit."""
        self.results.setdefault(what, []).append(result)
        if result.errors:
            self.doubts.append(f"{what}: {result.errors} requests failed")
        if (result.lag_p99_s or 0.0) > _LAG_LIMIT_S:
            self.doubts.append(f"{what}: the client was late, p99 {result.lag_p99_s or 0.0:.3f} s")
        if result.machine_share > _MACHINE_LIMIT:
            self.doubts.append(f"{what}: all cores were {result.machine_share:.0%} busy")
        reached = (result.requests + result.events) / result.window_s
        if reached < expected_per_s * _RATE_LIMIT:
            self.doubts.append(
                f"{what}: {reached:.0f}/s instead of {expected_per_s:.0f}/s: engines were full"
            )


async def loaded(
    bench: Bench,
    subject: Subject,
    effort: Effort,
    spec: Callable[[Subject], Spec],
) -> tuple[Result, float]:
    """Load a subject; returns the client's result and the CPU seconds beyond what idling costs."""
    before_s = cpu_s(subject.pid)
    await asyncio.sleep(effort.idle_s)
    idle_share = (cpu_s(subject.pid) - before_s) / effort.idle_s
    result = await load(spec(subject))
    await _at_rest(bench)
    return result, result.cpu_s[subject.name] - idle_share * result.window_s


async def _at_rest(bench: Bench) -> None:
    stack = bench.stack
    left = await settle(stack.redis_url, stack.options.pool, stack.router_urls)
    if not left.clean:
        raise RuntimeError(f"the system holds what it should not: {left}")


async def whole_answers(bench: Bench, effort: Effort, findings: Findings) -> None:
    """CPU per non-streamed request with an 8 KB body, and the latency of the router's decision."""
    for prompts, shared in (("distinct", 0), ("shared", 16)):
        measure = f"CPU per request, {prompts} prompts"
        for repeat in range(-1, effort.repeats):
            for subject in bench.subjects.values():

                def spec(to: Subject, number: int = repeat + 1, shared: int = shared) -> Spec:
                    return Spec(
                        url=to.url,
                        watch={to.name: to.pid},
                        rate=RATE,
                        window_s=effort.window_s,
                        # Prompts that no one has sent before, to any subject.
                        first=(number * 8 + len(to.name)) * 100_000 + shared,
                        shared_prefixes=shared,
                    )

                before = buckets(await scrape(bench.stack.router_urls[0]), DECISION)
                result, used_s = await loaded(bench, subject, effort, spec)
                if repeat < 0:
                    continue  # the warm-up
                findings.take(f"{measure}, {subject.name}", result, RATE)
                findings.add(measure, subject.name, "ms", used_s / max(result.requests, 1) * 1e3)
                findings.add(
                    f"latency p50, {prompts} prompts",
                    subject.name,
                    "ms",
                    (result.latency_p50_s or 0.0) * 1e3,
                )
                if subject.name == ROUTER:
                    after = buckets(await scrape(bench.stack.router_urls[0]), DECISION)
                    for share, name in ((0.5, "p50"), (0.99, "p99")):
                        value = quantile(before, after, share) or 0.0
                        findings.add(f"decision {name}, {prompts} prompts", ROUTER, "ms", value * 1e3)


async def streamed_answers(
    bench: Bench, effort: Effort, findings: Findings, subjects: Sequence[Subject] = ()
) -> None:
    """CPU per streamed chunk, of all subjects unless some are given."""
    tokens = int((effort.window_s + 60.0) * CHUNKS_PER_S)
    for repeat in range(effort.repeats):
        for subject in subjects or tuple(bench.subjects.values()):

            def spec(to: Subject, number: int = repeat) -> Spec:
                return Spec(
                    url=to.url,
                    watch={to.name: to.pid},
                    mode="streams",
                    connections=STREAMS,
                    warm_s=1.0,
                    window_s=effort.window_s,
                    first=(number * 8 + len(to.name)) * 1000,
                    body_bytes=1024,
                    max_tokens=tokens,
                )

            result, used_s = await loaded(bench, subject, effort, spec)
            findings.take(f"CPU per chunk, {subject.name}", result, STREAMS * CHUNKS_PER_S)
            findings.add("CPU per streamed chunk", subject.name, "us", used_s / max(result.events, 1) * 1e6)


async def memory(bench: Bench, effort: Effort, findings: Findings) -> None:
    """Memory of the router and of Redis over many distinct prompts; the first tenth is the warm-up."""
    subject = bench.subjects[ROUTER]
    steps = 10
    rss: list[int] = []
    for step in range(steps + 1):
        if step:
            result = await load(
                Spec(
                    url=subject.url,
                    watch={},
                    mode="closed",
                    connections=8,
                    requests=effort.prompts // steps,
                    first=10**9 + step * effort.prompts,
                )
            )
            findings.take("memory", result, 0.0)
        rss.append(rss_bytes(subject.pid))
    await _at_rest(bench)
    mega = 1e6
    findings.add("router RSS at the start", ROUTER, "MB", rss[0] / mega)
    findings.add("router RSS after a tenth of the prompts", ROUTER, "MB", rss[1] / mega)
    findings.add(f"router RSS after {effort.prompts:,} prompts", ROUTER, "MB", rss[-1] / mega)
    findings.add("router RSS growth after warm-up", ROUTER, "MB", (rss[-1] - rss[1]) / mega)
    redis = Redis.from_url(bench.stack.redis_url)
    try:
        info = await redis.info("memory")
    finally:
        await redis.aclose()
    findings.add("Redis memory at the end", ROUTER, "MB", info["used_memory"] / mega)
