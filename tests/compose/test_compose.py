"""A platform engineer's first hour: up, a client, more routers, and one of each container killed under load."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai
import pytest

from dualmap_sim.engine.canonical import canonical_prompt
from dualmap_sim.engine.text import matches

from ..waiting import eventually
from .conftest import Compose

MODEL = "sim-model"
TOKENS = 24
_EXTRA = {"ignore_eos": True}
_numbers = itertools.count()


def body_of(text: str) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": TOKENS, "messages": [{"role": "user", "content": text}]}


def client(system: Compose, max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{system.url}/v1", api_key="none", max_retries=max_retries, timeout=60.0
    )


@dataclass
class Load:
    """Requests all the time, each checked for the text that only its prompt gives."""

    api: openai.AsyncOpenAI
    answered: int = 0
    retried: int = 0
    wrong: list[str] = field(default_factory=list)

    async def ask(self, stream: bool) -> None:
        body = body_of(f"{next(_numbers)} " + "how many roads " * 200)
        for attempt in range(4):
            try:
                text = await (self._streamed(body) if stream else self._whole(body))
            except openai.APIError as exc:
                if not stream or attempt == 3:
                    self.wrong.append(f"{type(exc).__name__}: {exc}")
                    return
                # A cut stream: the client asks again.
                self.retried += 1
                continue
            if not matches(canonical_prompt(body), text, TOKENS):
                self.wrong.append(f"not the answer to this prompt: {text[:60]!r}")
            self.answered += 1
            return

    async def _whole(self, body: dict[str, Any]) -> str:
        answer = await self.api.chat.completions.create(**body, extra_body=_EXTRA)
        return answer.choices[0].message.content or ""

    async def _streamed(self, body: dict[str, Any]) -> str:
        stream = await self.api.chat.completions.create(**body, extra_body=_EXTRA, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@asynccontextmanager
async def under_load(system: Compose, stream: bool, clients: int = 6) -> AsyncIterator[Load]:
    """Clients that ask one request after the other while the body runs."""
    load, going = Load(client(system, max_retries=3 if stream else 0)), True

    async def one() -> None:
        while going:
            await load.ask(stream)

    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    try:
        await eventually(lambda: load.answered >= 2 * clients)
        yield load
    finally:
        going = False
        await asyncio.gather(*tasks)
        await load.api.close()


async def state_of(system: Compose) -> dict[str, Any]:
    """What a router says of itself."""
    async with aiohttp.ClientSession() as http, http.get(f"{system.url}/readyz") as response:
        found: dict[str, Any] = await response.json()
        return found


async def routers_met(system: Compose, requests: int = 24) -> Counter[str]:
    met: Counter[str] = Counter()
    for _ in range(requests):
        state = await state_of(system)
        met[state["router"]] += state["ready"]
    return met


async def at_rest(system: Compose) -> bool:
    """Nothing is left in any router, on any instance, or in Redis."""
    state = await state_of(system)
    held = system.run("exec", "-T", "redis", "redis-cli", "HLEN", "dm:{demo}:charges").strip()
    return (state["in_flight"], state["live_charges"], state["exchanges"], held) == (0, 0, 0, "0")


async def test_the_official_client(system: Compose) -> None:
    async with client(system) as api:
        models = await api.models.list()
        assert [model.id for model in models.data] == [MODEL]
        raw = await api.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=TOKENS
        )
        assert raw.headers["x-dualmap-instance"] in ("worker-1", "worker-2", "worker-3", "worker-4")
        pieces = [
            piece.choices[0].delta.content or ""
            async for piece in await api.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=TOKENS, stream=True
            )
            if piece.choices
        ]
    assert "".join(pieces) == raw.parse().choices[0].message.content
    assert len((await state_of(system))["instances"]) == 4


async def test_nothing_runs_as_root_or_can_write(system: Compose) -> None:
    for service in ("router", "worker-1", "engine-1", "rebalancer", "gateway"):
        container = system.containers(service)[0]
        assert system.docker("exec", container, "id", "-u").strip() != "0"
        read_only = system.docker("inspect", "--format", "{{.HostConfig.ReadonlyRootfs}}", container)
        assert read_only.strip() == "true"
    published = system.run("ps", "--format", "{{.Publishers}}")
    assert "0.0.0.0" not in published


async def test_more_routers_behind_the_same_address(system: Compose) -> None:
    system.up("--scale", "router=4")
    await eventually(lambda: _all_met(system, 4), 30.0)
    async with under_load(system, stream=False) as load:
        await eventually(lambda: load.answered >= 60, 60.0)
    assert load.wrong == []
    # The same prefix meets the same instance through whichever router.
    async with client(system) as api:
        text = "one prefix for all routers " * 400
        answers = [
            await api.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": f"{text} {number}"}], max_tokens=2
            )
            for number in range(12)
        ]
    assert len({answer.headers["x-dualmap-instance"] for answer in answers}) == 1
    assert len({answer.headers["x-dualmap-router"] for answer in answers}) > 1
    await eventually(lambda: at_rest(system))


async def _all_met(system: Compose, routers: int) -> bool:
    return len(await routers_met(system)) == routers


@pytest.mark.parametrize("service", ["engine-1", "worker-2", "rebalancer", "redis"])
async def test_a_killed_container_costs_no_request(system: Compose, service: str) -> None:
    load = await survived(system, service, stream=False)
    assert load.wrong == []


@pytest.mark.parametrize("service", ["engine-3", "worker-4"])
async def test_streams_go_on_when_their_engine_or_worker_is_killed(system: Compose, service: str) -> None:
    load = await survived(system, service, stream=True)
    assert (load.wrong, load.retried) == ([], 0)


@pytest.mark.parametrize("service", ["router", "gateway"])
async def test_what_carries_a_stream_is_killed_and_a_retry_completes_it(
    system: Compose, service: str
) -> None:
    load = await survived(system, service, stream=True)
    assert load.wrong == []


async def survived(system: Compose, service: str, stream: bool) -> Load:
    """Kill one container under load and start it again; in the end nothing is left of it."""
    async with under_load(system, stream) as load:
        system.kill(system.containers(service)[0])
        seen = load.answered
        # Streams through the only gateway have to wait for it.
        if service != "gateway":
            await eventually(lambda: load.answered >= seen + 40, 60.0)
        system.up("--scale", "router=4")
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 40, 60.0)
    await eventually(lambda: all_back(system), 30.0)
    await eventually(lambda: at_rest(system), 30.0)
    return load


async def all_back(system: Compose) -> bool:
    return len((await state_of(system))["instances"]) == 4


async def spans(system: Compose) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.get(system.spans_url) as response:
        found: list[dict[str, Any]] = json.loads(await response.read())
        return found


async def moved_spans(system: Compose) -> list[dict[str, Any]]:
    return [span for span in await spans(system) if span["name"] == "dispatch" and "moved" in span["events"]]


def slow_down(system: Compose, engine: str, factor: float) -> None:
    code = (
        "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8100/admin/faults', "
        f"data=b'{{\"slow_down\": {factor}}}', headers={{'content-type': 'application/json'}}))"
    )
    system.docker("exec", system.containers(engine)[0], "python", "-c", code)


async def test_a_trace_spans_router_queue_and_engine_with_a_move_in_it(system: Compose) -> None:
    prompt = "a long way to go " * 3000
    # All to one pair, and with time enough that they queue there instead of escaping.
    ask_for = {
        "x-dualmap-prefix-key": "hot",
        "x-dualmap-policy": "paper",
        "x-dualmap-slo-ttft-ms": "120000",
    }

    async def ask(api: openai.AsyncOpenAI, number: int) -> str:
        raw = await api.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"{number} {prompt}"}],
            max_tokens=2,
            extra_headers=ask_for,
        )
        return raw.headers["x-dualmap-instance"]

    async with client(system) as api:
        hot = await ask(api, 0)
        slow_down(system, hot.replace("worker", "engine"), 4.0)
        asked = [asyncio.create_task(ask(api, number)) for number in range(1, 13)]
        moved = await eventually(lambda: moved_spans(system), 60.0)
        slow_down(system, hot.replace("worker", "engine"), 1.0)
        await asyncio.gather(*asked)
    trace_id = moved[0]["trace_id"]

    async def whole() -> list[dict[str, Any]] | None:
        trace = [span for span in await spans(system) if span["trace_id"] == trace_id]
        names = Counter(span["name"] for span in trace)
        complete = names["POST /v1/chat/completions"] == 1 and names["engine"] >= 1 and names["queue"] >= 2
        return trace if complete else None

    trace = await eventually(whole, 30.0)
    ids = {span["span_id"] for span in trace}
    roots = [span for span in trace if span["parent_id"] not in ids]
    assert [root["name"] for root in roots] == ["POST /v1/chat/completions"]
    assert {span["service"] for span in trace} == {"dualmap-router", "dualmap-worker"}
    targets = [span["attributes"]["dualmap.instance"] for span in trace if span["name"] == "dispatch"]
    assert len(set(targets)) >= 2
    await eventually(lambda: at_rest(system), 30.0)


async def test_stopping_a_worker_drains_it(system: Compose) -> None:
    async with under_load(system, stream=True) as load:
        system.run("stop", "worker-3")
        seen = load.answered
        await eventually(lambda: load.answered >= seen + 30, 60.0)
        instances = (await state_of(system))["instances"]
        system.up("--scale", "router=4")
    assert "worker-3" not in instances
    assert (load.wrong, load.retried) == ([], 0)
    await eventually(lambda: all_back(system), 30.0)


async def test_the_load_generator_in_its_profile(system: Compose) -> None:
    out = system.run(
        "--profile", "load", "run", "--rm", "-T", "load",
        "load", "--url", "http://gateway:8000", "--workload", "chat", "--requests", "100", "--json",
    )  # fmt: skip
    report = json.loads(out[out.index("{") :])
    assert report["answered"] == report["sent"] == 100
