"""A platform engineer's first hour: up, a client, more routers, a workload, and a trace of a request that moved."""

import asyncio
import json
from collections import Counter
from typing import Any

import openai

from ..waiting import eventually
from .conftest import Compose
from .load import MODEL, TOKENS, client, under_load
from .rest import at_rest, spans, state_of


async def routers_met(system: Compose, requests: int = 24) -> Counter[str]:
    met: Counter[str] = Counter()
    for _ in range(requests):
        state = await state_of(system)
        met[state["router"]] += state["ready"]
    return met


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
    services = system.run("ps", "--services").split()
    assert {"redis", "jaeger", "gateway", "router", "rebalancer", "engine-1", "worker-1"} <= set(services)
    for service in services:
        container = system.containers(service)[0]
        assert system.docker("exec", container, "id", "-u").strip() != "0", service
        assert system.inspect("{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}", container) == [
            "true [ALL]"
        ], service
    published = system.run("ps", "--format", "{{.Publishers}}")
    assert "0.0.0.0" not in published


async def test_more_routers_behind_the_same_address(scaled: Compose) -> None:
    system = scaled
    await eventually(lambda: _all_met(system, 4), 30.0)
    async with under_load(system, whole=6, streams=0) as load:
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


async def test_the_load_generator_in_its_profile(system: Compose) -> None:
    # What it depends on runs, and more of it than compose.yaml says.
    out = system.run(
        "--profile", "load", "run", "--rm", "--no-deps", "-T", "load",
        "load", "--url", "http://gateway:8000", "--workload", "chat", "--requests", "100",
        "--rate", "10", "--json",
    )  # fmt: skip
    report = json.loads(out[out.index("{") :])
    assert report["answered"] == report["sent"] == 100
