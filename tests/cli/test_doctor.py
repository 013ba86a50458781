"""`dualmap doctor` on a healthy system, and on one with parts missing, silent or frozen."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from dualmap_cli.doctor.clocks import Clocks, GoesBy
from dualmap_cli.stack import Stack, StackOptions
from dualmap_service.ports import free_ports
from dualmap_sim.engine import EngineSpec, named_profile, start_engines

from ..clocks import ClockedStack
from ..link import Link
from ..waiting import NotYet, eventually

Findings = list[dict[str, Any]]


async def doctor(*args: str, env: Mapping[str, str] | None = None) -> tuple[int, Findings]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", "doctor", "--json", *args,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})},
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)["findings"]


async def ask(stack: Stack, *args: str, env: Mapping[str, str] | None = None) -> tuple[int, Findings]:
    """Of a whole system."""
    routers = [word for url in stack.router_urls for word in ("--router", url)]
    return await doctor("--redis-url", stack.redis_url, "--pool", "demo", *routers, *args, env=env)


def said(findings: Findings, state: str, about: str = "") -> list[str]:
    return [
        f"{finding['about']}: {finding['says']}"
        for finding in findings
        if finding["state"] == state and about in finding["about"]
    ]


async def test_it_finds_nothing_wrong_and_then_what_is() -> None:
    async with Stack(StackOptions(routers=1, workers=2, engine_flags=("--no-kv-events",))) as stack:
        status, findings = await ask(stack)
        assert (status, said(findings, "bad")) == (0, [])
        assert {"store", "functions", "rebalancer", "worker-1", "worker-2"} <= {f["about"] for f in findings}
        [lack] = [f for f in findings if f["about"] == "worker-1" and f["state"] == "warn"]
        assert lack["says"].startswith("its engine lacks kv-events")
        assert "--kv-events-config" in lack["do"]
        [clocks] = [f["says"] for f in findings if f["about"] == "clocks"]
        assert clocks.endswith(f"store, worker-1, worker-2, {stack.router_urls[0]}")

        stack.children["worker-2"].process.kill()
        await stack.children["rebalancer-1"].stop()
        status, findings = await ask(stack)
        assert status == 1
        bad = " ".join(said(findings, "bad"))
        assert "worker-2" in bad
        assert "nobody leads" in bad

        status, findings = await doctor("--redis-url", stack.redis_url, "--pool", "elsewhere")
        assert status == 1
        assert any("none in this pool" in text for text in said(findings, "bad"))


async def test_a_store_that_is_not_there() -> None:
    status, findings = await doctor("--redis-url", "redis://127.0.0.1:1/0", "--router", "http://127.0.0.1:1")
    assert status == 1
    assert [finding["about"] for finding in findings] == ["store", "http://127.0.0.1:1"]
    assert all(finding["do"] for finding in findings)


async def test_what_answers_where_a_router_should_be() -> None:
    async with (
        _answering(lambda _: web.json_response({"hello": "there"})) as other,
        _answering(lambda _: web.Response(text="<html>")) as page,
        _silent() as silent,
    ):
        routers = [word for url in (other, page, silent) for word in ("--router", url)]
        _, findings = await doctor("--redis-url", "redis://127.0.0.1:1/0", *routers)
    says = {finding["about"]: finding["says"] for finding in findings if finding["state"] == "bad"}
    assert says[other] == "what answers is no router"
    assert says[page].startswith("no router answers")
    assert says[silent].startswith("no router answers: TimeoutError")


@asynccontextmanager
async def _answering(handler: Any) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        response: web.Response = handler(request)
        return response

    app = web.Application()
    app.router.add_get("/readyz", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_ports()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    """Takes connections and says nothing."""

    writers = []

    async def hear_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(hear_out, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


@pytest.mark.timeout(180)
async def test_frozen_parts() -> None:
    async with Stack(StackOptions(routers=1, workers=2)) as stack:

        async def says(*wanted: str) -> bool:
            status, findings = await ask(stack)
            return status == 1 and all(any(text in line for line in said(findings, "bad")) for text in wanted)

        # 1. The leader hears nothing any more: what the store holds grows old, whatever the workers say.
        with _frozen(stack, "rebalancer-1"):
            stale = [f"worker-{number}: its telemetry in the store is stale" for number in (1, 2)]
            await eventually(lambda: says(*stale), timeout_s=60.0)
            # 2. A worker that says nothing: at first its lease is still there. Nobody forgets it meanwhile.
            with _frozen(stack, "worker-2"):
                status, findings = await ask(stack)
                [text] = said(findings, "bad", "worker-2")
                assert status == 1
                assert "no answer at" in text or "its lease has run out" in text
                await eventually(lambda: says("worker-2: its lease has run out"), timeout_s=30.0)

        async def well() -> bool | NotYet:
            status, findings = await ask(stack)
            return (status == 0 and len(said(findings, "ok", "worker-2")) > 1) or NotYet(findings)

        await eventually(well, timeout_s=60.0)


@contextmanager
def _frozen(stack: Stack, part: str) -> Iterator[None]:
    process = stack.children[part].process
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


# Clocks


async def test_whose_clock_differs() -> None:
    async with ClockedStack(StackOptions(routers=2, workers=2)) as stack:
        status, findings = await ask(stack)
        assert (status, said(findings, "warn")) == (0, [])
        stack.set_clock("worker-1", -3600.0)
        stack.set_clock("router-2", 90.0)
        status, findings = await ask(stack)
        assert status == 0
        behind, ahead = said(findings, "warn")
        assert behind.startswith("worker-1: its clock is 3600.0 s behind this machine's (within 0.")
        assert ahead.startswith(
            f"{stack.router_urls[1]}: its clock is 90.0 s ahead of this machine's (within 0."
        )
        assert "API keys end by it" in ahead

        for name in ("worker-1", "router-2"):
            stack.set_clock(name, 0.0)
        here = stack.environment("doctor")
        stack.set_clock("doctor", 7.0)
        _, findings = await ask(stack, env=here)
        [text] = said(findings, "warn")
        assert text.startswith("this machine: its clock is 7.0 s ahead of the store's")


def test_a_store_whose_clock_differs() -> None:
    clocks = Clocks()
    assert list(clocks.findings()) == [], "nobody to compare with"
    clocks.read("store", GoesBy.STORE, 97.0, 100.0, 100.2)
    for name in ("worker-1", "worker-2"):
        clocks.read(name, GoesBy.WORKER, 100.05, 100.0, 100.1)
    [finding] = clocks.findings()
    assert (finding.state, finding.about) == ("warn", "store")
    assert finding.says.startswith("its clock is 3.1 s behind this machine's (within 0.100 s): leases")


def test_a_slow_answer_proves_nothing() -> None:
    clocks = Clocks()
    clocks.read("worker-1", GoesBy.WORKER, 100.0, 100.0, 103.0)
    [finding] = clocks.findings()
    assert (finding.state, finding.says) == (
        "ok",
        "no second apart from this machine's (within 1.500 s): worker-1",
    )


# KV events


@pytest.mark.timeout(180)
async def test_kv_events_that_do_not_come() -> None:
    specs = [EngineSpec(named_profile("fast"))] * 3
    async with await start_engines(specs) as host, _Link(str(host.addresses[2].kv_events)) as link:
        well, _, cut = host.addresses
        kv_urls = {address.url: ("tcp://127.0.0.1:1", "") for address in host.addresses}
        kv_urls[well.url] = (str(well.kv_events), str(well.kv_replay))
        kv_urls[cut.url] = (link.url, "")
        options = StackOptions(routers=1, engine_urls=tuple(kv_urls), kv_urls=kv_urls)
        async with Stack(options) as stack:
            await _kv_events_stay_away(stack, link)


async def _kv_events_stay_away(stack: Stack, link: Link) -> None:
    """Three workers: one hears its engine's events, one has a wrong URL, and the last one's way can be cut."""
    _, findings = await ask(stack)
    assert said(findings, "warn") == []
    for name in ("worker-1", "worker-2", "worker-3"):
        unclear = f"{name}: its KV events are configured; no prompt has shown yet whether they come"
        assert unclear in said(findings, "ok")

    async def told(silent: set[str], followed: set[str]) -> Findings | None:
        await _prompts(stack, 60)
        _, found = await ask(stack)
        warned = {text.partition(":")[0] for text in said(found, "warn") if "heard-kv-events" in text}
        well = {text.partition(":")[0] for text in said(found, "ok") if "ownership follows" in text}
        return found if (warned, well) == (silent, followed) else None

    await eventually(lambda: told({"worker-2"}, {"worker-1", "worker-3"}), timeout_s=60.0)
    # The events of one that was followed stay away, and what comes afterwards shows that some are lost.
    link.cut()
    await eventually(lambda: told({"worker-2", "worker-3"}, {"worker-1"}), timeout_s=60.0)
    link.mend()
    findings = await eventually(lambda: told({"worker-2"}, {"worker-1", "worker-3"}), timeout_s=60.0)
    [lost] = [text for text in said(findings, "warn") if "lost for good" in text]
    assert lost.startswith("worker-3: ")
    [do] = [finding["do"] for finding in findings if "heard-kv-events" in finding["says"]]
    assert "--kv-events-url" in do


class _Link(Link):
    """Opened and closed by `async with`."""

    async def __aenter__(self) -> Self:
        self.url = await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_numbers = iter(range(1_000_000))


async def _prompts(stack: Stack, count: int) -> None:
    """Prompts of some two thousand tokens that have nothing in common."""
    async with aiohttp.ClientSession() as http:

        async def one() -> None:
            text = f"{next(_numbers)} " + "lorem ipsum dolor sit amet " * 320
            body = {"model": "sim-model", "prompt": text, "max_tokens": 1}
            async with http.post(f"{stack.router_urls[0]}/v1/completions", json=body) as reply:
                assert reply.status == 200, await reply.text()

        await asyncio.gather(*(one() for _ in range(count)))
