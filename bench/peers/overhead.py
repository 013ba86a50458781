"""What a router costs: CPU per request by prompt size and per streamed chunk, added time, memory, rate per core.

The clients and clocks are those of bench.router; the routers stand in front of the same two fast engines.
"""

from collections.abc import Sequence

from bench.peers.config import Effort
from bench.router.client import Result, Spec, load
from bench.router.clocks import cpu_s, rss_bytes
from bench.router.measures import Effort as WindowEffort
from bench.router.measures import Findings, loaded, streamed_answers
from bench.router.subjects import DIRECT, ROUTER, Bench, Subject, running

RATE, LOW_RATE = 150.0, 20.0
ADDED = "p50 added at 20 requests/s"
"""To that of an engine without a router."""
SIZES = (1024, 8192, 49152)
SUBJECTS = ("sglang-router", "smg", "vllm-router", "nginx")
"""As they come; vllm-router's cache_aware asks both engines to tokenize each prompt, which its own CPU pays for too."""
_FAST, _PACED = 50.0, 0.0516
"""Time scales of bench.router: answers at once, and 50 tokens a second."""
_FLAGS = ("--profile", "fast")
_MEMORY_BYTES = 8192


async def measure(effort: Effort, names: Sequence[str], repeats: int = 2) -> Findings:
    """All of it, for DualMap and the named peers."""
    findings = Findings()
    windows = WindowEffort(repeats=repeats, idle_s=0.7, window_s=effort.overhead_s, prompts=effort.prompts)
    async with running(_FAST, _FLAGS, peers=names) as bench:
        for size in SIZES:
            await _whole(bench, windows, findings, size)
        await _low_load(bench, windows, findings)
        await _at_most(bench, findings, effort)
        await _memory(bench, findings, effort.prompts)
    async with running(_PACED, _FLAGS, peers=names) as bench:
        await streamed_answers(bench, windows, findings, _routers(bench))
    return findings


async def _whole(bench: Bench, effort: WindowEffort, findings: Findings, size: int) -> None:
    measure_name = f"CPU per {size // 1024} KB request"
    for repeat in range(-1, effort.repeats):
        for number, subject in enumerate(_routers(bench)):
            window_s = effort.window_s if repeat >= 0 else 1.0  # the first is the warm-up

            def spec(
                to: Subject, first: int = _first(size, repeat, number), window_s: float = window_s
            ) -> Spec:
                return Spec(
                    url=to.url,
                    watch={to.name: to.pid},
                    rate=RATE if size < 16384 else RATE / 3,
                    window_s=window_s,
                    first=first,
                    shared_prefixes=16,
                    body_bytes=size,
                )

            result, used_s = await loaded(bench, subject, effort, spec)
            if repeat >= 0:
                _note(findings, f"{measure_name}, {subject.name}", result)
                findings.add(measure_name, subject.name, "ms", used_s / max(result.requests, 1) * 1e3)


async def _low_load(bench: Bench, effort: WindowEffort, findings: Findings) -> None:
    subjects = [bench.subjects[DIRECT], *_routers(bench)]
    for repeat in range(effort.repeats):
        direct_s = 0.0
        for number, subject in enumerate(subjects):
            result = await load(
                Spec(
                    url=subject.url,
                    watch={},
                    rate=LOW_RATE,
                    window_s=effort.window_s,
                    first=_first(1, repeat, number),
                    shared_prefixes=16,
                )
            )
            _note(findings, f"low load, {subject.name}", result)
            p50_s = result.latency_p50_s or 0.0
            if subject.name == DIRECT:
                direct_s = p50_s
            else:
                findings.add(ADDED, subject.name, "ms", (p50_s - direct_s) * 1e3)


async def _at_most(bench: Bench, findings: Findings, effort: Effort) -> None:
    requests = max(round(effort.overhead_s * 250), 200)
    for number, subject in enumerate(_routers(bench)):
        before_s = cpu_s(subject.pid)
        result = await load(
            Spec(
                url=subject.url,
                watch={subject.name: subject.pid},
                mode="closed",
                connections=32,
                requests=requests,
                first=_first(2, 0, number),
                shared_prefixes=16,
            )
        )
        used_s = cpu_s(subject.pid) - before_s
        findings.add("requests/s per core when full", subject.name, "/s", result.requests / max(used_s, 1e-9))


async def _memory(bench: Bench, findings: Findings, prompts: int) -> None:
    for number, subject in enumerate(_routers(bench)):
        before = rss_bytes(subject.pid)
        await load(
            Spec(
                url=subject.url,
                watch={},
                mode="closed",
                connections=8,
                requests=prompts,
                first=_first(3, 0, number),
                body_bytes=_MEMORY_BYTES,
            )
        )
        after = rss_bytes(subject.pid)
        findings.add(f"memory after {prompts:,} distinct prompts", subject.name, "MB", after / 1e6)
        findings.add("... of it since before them", subject.name, "MB", (after - before) / 1e6)


def _routers(bench: Bench) -> list[Subject]:
    return [subject for name, subject in bench.subjects.items() if name != DIRECT]


def _first(measure_number: int, repeat: int, subject: int) -> int:
    """Prompts that no one has sent before, to any subject."""
    return (measure_number * 64 + (repeat + 1) * 8 + subject) * 1_000_000


def _note(findings: Findings, what: str, result: Result) -> None:
    findings.take(what, result, 0.0)


__all__ = ["DIRECT", "ROUTER", "SUBJECTS", "measure"]
