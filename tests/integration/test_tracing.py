"""One connected trace per request, across router, worker and engine; and none where nobody asked."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_wire.v1 import worker_pb2 as pb

from ..otlp_receiver import Receiver, SpanSeen
from ..waiting import eventually
from .conftest import chat, faults, leftovers, post, unique_text
from .load_checks import control, holds

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    """A collector, and its URL."""
    receiver = Receiver()
    port = await receiver.start("127.0.0.1:0")
    yield receiver, f"http://127.0.0.1:{port}"
    await receiver.stop()


@asynccontextmanager
async def traced(endpoint: str, **options: Any) -> AsyncIterator[Stack]:
    settings = {"routers": 1, "workers": 2, "rebalancers": 0, "trace_endpoint": endpoint, **options}
    async with Stack(StackOptions(**settings)) as stack:
        yield stack
        assert (await leftovers(stack)).clean


def named(spans: list[SpanSeen], name: str) -> SpanSeen:
    [span] = [span for span in spans if span.name == name]
    return span


async def ask(stack: Stack, http: aiohttp.ClientSession, text: str, stream: bool, **headers: str) -> Any:
    """Headers of an answer that was read to its end."""
    body = chat(text, stream=stream)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(f"{stack.router_urls[0]}/v1/chat/completions", json=body, headers=named) as response:
        await response.read()
        assert response.status == 200
        return response.headers


async def test_a_request_is_one_trace(receiver: tuple[Receiver, str], http: aiohttp.ClientSession) -> None:
    collector, endpoint = receiver
    async with traced(endpoint) as stack:
        for stream in (True, False):
            trace_id = f"{time.time_ns():032x}"
            headers = await ask(stack, http, unique_text(), stream, traceparent=f"00-{trace_id}-{CALLER}-01")
            spans = await eventually(
                lambda trace_id=trace_id: len(collector.trace(trace_id)) == 6 and collector.trace(trace_id)
            )
            root = named(spans, "POST /v1/chat/completions")
            route, call = named(spans, "route"), named(spans, "FCALL route")
            dispatch, queue, engine = (named(spans, name) for name in ("dispatch", "queue", "engine"))
            # Each hangs on the right one, and lies within it.
            assert root.parent_id == CALLER
            assert (route.parent_id, call.parent_id) == (root.span_id, route.span_id)
            assert dispatch.parent_id == root.span_id
            assert (queue.parent_id, engine.parent_id) == (dispatch.span_id, dispatch.span_id)
            assert root.start_ns <= route.start_ns <= route.end_ns <= dispatch.start_ns
            # The call's own time: the decision began before it, and had more to do after it.
            assert route.start_ns < call.start_ns < call.end_ns < route.end_ns
            assert queue.start_ns <= queue.end_ns <= engine.start_ns <= engine.end_ns
            assert dispatch.end_ns <= root.end_ns
            assert [s.service for s in (root, dispatch, queue, engine)] == [
                "dualmap-router", "dualmap-router", "dualmap-worker", "dualmap-worker",
            ]  # fmt: skip
            # They say what the response headers say.
            for span in (route, dispatch, queue, root):
                assert span.attributes["dualmap.instance"] == headers["x-dualmap-instance"]
            assert route.attributes["dualmap.reason"] == headers["x-dualmap-reason"]
            assert route.attributes["dualmap.candidates"] == headers["x-dualmap-candidates"]
            assert root.attributes["gen_ai.request.model"] == "sim-model"
            assert root.attributes["http.response.status_code"] == 200
            assert ("dualmap.ttft_s" in root.attributes) == ("first_token" in root.events) == stream
            assert engine.attributes["gen_ai.usage.input_tokens"] > 50
            assert "first_byte" in engine.events
            assert not any(span.is_error for span in spans)


async def test_a_caller_that_is_not_sampled_leaves_no_span(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint) as stack:
        await ask(stack, http, unique_text(), True, traceparent=f"00-{TRACE}-{CALLER}-00")
        await ask(stack, http, unique_text(), True, traceparent="lorem ipsum", x_request_id="next")
    # Processes that stop export what they have: of the first request there is nothing.
    assert {span.attributes["dualmap.request_id"] for span in collector.spans if not span.parent_id} == {
        "next"
    }
    assert TRACE not in {span.trace_id for span in collector.spans}


async def test_a_move_is_an_event_and_a_second_dispatch(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint, time_scale=4.0) as stack:
        # One prefix for all, and an engine that stands still: the later ones wait behind the first.
        key = {"x_dualmap_prefix_key": "one", "x_dualmap_policy": "paper"}
        first = (await ask(stack, http, unique_text(), True, **key))["x-dualmap-instance"]
        other = next(name for name in ("worker-1", "worker-2") if name != first)
        await faults(http, stack.engine_urls[int(first[-1]) - 1], slow_down=8.0)
        asked = [
            asyncio.create_task(ask(stack, http, unique_text(60_000), True, x_request_id=f"m{number}", **key))
            for number in range(4)
        ]
        await eventually(lambda: holds(stack, first, queued=1, running=1))
        async with control(stack, first) as stub:
            [waiting, *_] = (await stub.ListQueue(pb.ListQueueRequest(), timeout=10)).entries
            moves = [pb.MigrateMove(request_id=waiting.request_id, target=other)]
            reply = await stub.Migrate(pb.MigrateRequest(moves=moves, fence=1), timeout=10)
        assert list(reply.moved) == [waiting.request_id]
        await faults(http, stack.engine_urls[int(first[-1]) - 1], reset=True)
        await asyncio.gather(*asked)
        [root] = await eventually(
            lambda: collector.find(lambda s: s.attributes.get("dualmap.request_id") == waiting.request_id)
        )
        spans = await eventually(
            lambda: len(collector.trace(root.trace_id)) >= 10 and collector.trace(root.trace_id)
        )
    dispatches = [span for span in spans if span.name == "dispatch"]
    assert [span.attributes["dualmap.instance"] for span in dispatches] == [first, other]
    assert dispatches[0].events == {"moved": {"dualmap.target": other}}
    queues = [span for span in spans if span.name == "queue"]
    assert [span.attributes["dualmap.moves"] for span in queues] == [0, 1]
    assert queues[0].events == {"moved": {"dualmap.target": other}}
    # It was prefilled once, where it went.
    assert named(spans, "engine").attributes["dualmap.instance"] == other
    assert root.attributes["dualmap.moves"] == 1


async def test_failures_and_missed_objectives_leave_a_span_unsampled(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint, router_flags={"trace_share": 0.0, "max_attempts": 1}) as stack:
        await ask(stack, http, unique_text(), True, x_request_id="fine")
        await ask(stack, http, unique_text(), True, x_request_id="late", x_dualmap_slo_ttft_ms="0.01")
        for url in stack.engine_urls:
            await faults(http, url, error_rate=1.0)
        status, _, _ = await post(
            http, stack.router_urls[0], "/v1/chat/completions", chat("x"), x_request_id="failed"
        )
        assert status >= 500
        for url in stack.engine_urls:
            await faults(http, url, reset=True)
        await eventually(lambda: len(collector.spans) == 2)
    late, failed = sorted(collector.spans, key=lambda span: span.start_ns)
    assert late.attributes["dualmap.request_id"] == "late"
    assert late.attributes["dualmap.slo_met"] is False
    assert (failed.attributes["dualmap.request_id"], failed.is_error) == ("failed", True)
    assert failed.attributes["http.response.status_code"] == status


async def test_a_slow_request_is_found_from_the_metric(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint) as stack:
        await ask(stack, http, unique_text(), True)
        [trace_id] = (await exemplars(stack, http)).values()
        await eventually(lambda: collector.trace(trace_id))


async def test_so_is_one_that_nobody_sampled(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint, router_flags={"trace_share": 0.0, "slo_ttft_s": 2.0}) as stack:
        await asyncio.gather(*(ask(stack, http, unique_text(), True) for _ in range(100)))
        assert await exemplars(stack, http) == {}, "all were in time"
        for url in stack.engine_urls:
            await faults(http, url, latency_ms=2500.0)
        await ask(stack, http, unique_text(), True, x_request_id="late")
        for url in stack.engine_urls:
            await faults(http, url, reset=True)
        found = await exemplars(stack, http)
        [(bucket, trace_id)] = found.items()
        assert bucket >= 3.0
        [root] = await eventually(lambda: collector.trace(trace_id))
    assert len(collector.spans) == 1
    assert root.attributes["dualmap.request_id"] == "late"
    assert root.attributes["dualmap.ttft_s"] > 2.5
    assert "first_token" in root.events
    # It says when the request came, not when it was found to be late.
    assert root.end_ns - root.start_ns > 2.5e9


async def test_no_more_than_a_few_a_second(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint, router_flags={"trace_share": 0.0}) as stack:
        started = time.monotonic()
        await asyncio.gather(
            *(ask(stack, http, unique_text(), True, x_dualmap_slo_ttft_ms="0.01") for _ in range(60))
        )
        most = 10 * (int(time.monotonic() - started) + 2)
        found = await exemplars(stack, http)
    assert 0 < len(collector.spans) <= most
    assert found
    assert set(found.values()) <= {span.trace_id for span in collector.spans}, "each leads to its span"


async def exemplars(stack: Stack, http: aiohttp.ClientSession) -> dict[float, str]:
    """Trace ids by the upper edge of their bucket of TTFTs."""
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    async with http.get(f"{stack.router_urls[0]}/metrics", headers=accept) as response:
        assert response.content_type == "application/openmetrics-text"
        lines = (await response.text()).splitlines()
    found = {}
    for line in lines:
        if line.startswith("dualmap_ttft_seconds_bucket") and "#" in line:
            edge = line.partition('le="')[2].partition('"')[0]
            found[float(edge)] = line.partition('trace_id="')[2].partition('"')[0]
    return found


async def test_what_goes_wrong_is_logged_with_its_trace(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    collector, endpoint = receiver
    async with traced(endpoint) as stack:
        for sampled, request_id in (("01", "traced"), ("00", "kept")):
            trace_id = f"{time.time_ns():032x}"
            for url in stack.engine_urls:
                await faults(http, url, die_after_tokens=7, times=1)
            # Two choices: an answer that cannot be continued.
            body = chat(unique_text(), stream=True, n=2, max_tokens=40, ignore_eos=True)
            headers = {"traceparent": f"00-{trace_id}-{CALLER}-{sampled}", "x-request-id": request_id}
            url = f"{stack.router_urls[0]}/v1/chat/completions"
            async with http.post(url, json=body, headers=headers) as response:
                assert b"answer_interrupted" in await response.read()
            for url in stack.engine_urls:
                await faults(http, url, reset=True)
            broken = logged(stack, "router-1", "stream.broken", request_id)
            if sampled == "01":
                assert broken["trace_id"] == trace_id
                assert logged(stack, "router-1", "stream.not_resumed", request_id)["trace_id"] == trace_id
                [worker] = [
                    name for name in ("worker-1", "worker-2") if "relay.engine_failed" in log(stack, name)
                ]
                assert logged(stack, worker, "relay.engine_failed", request_id)["trace_id"] == trace_id
            else:
                # Nobody sampled it: that it broke is why it is traced, and nothing before that was.
                [root] = await eventually(lambda kept=broken["trace_id"]: collector.trace(kept))
                assert root.attributes["dualmap.request_id"] == request_id
                assert root.is_error
                assert "trace_id" not in logged(stack, "router-1", "stream.not_resumed", request_id)


async def test_a_preempted_request_is_logged_with_its_trace(
    receiver: tuple[Receiver, str], http: aiohttp.ClientSession
) -> None:
    _, endpoint = receiver
    flags = {"log_level": "debug", "preempt_min_s": 0.05, "preempt_min_run_s": 0.05}
    async with traced(endpoint, workers=1, worker_flags=flags, slo_s=1.0) as stack:
        late = asyncio.create_task(
            ask(stack, http, unique_text(300_000), True, x_request_id="late", x_dualmap_slo_ttft_ms="10")
        )
        await eventually(lambda: holds(stack, "worker-1", running=1))
        await ask(stack, http, unique_text(), True)
        await late
        found = logged(stack, "worker-1", "relay.preempted", "late")
    assert len(str(found["trace_id"])) == 32


def log(stack: Stack, part: str) -> str:
    return (stack.logs / f"{part}.log").read_text()


def logged(stack: Stack, part: str, event: str, request_id: str) -> dict[str, object]:
    """The one line of a part's log about this event of a request."""
    lines = [json.loads(line) for line in log(stack, part).splitlines() if line.startswith("{")]
    [found] = [line for line in lines if (line.get("event"), line.get("request_id")) == (event, request_id)]
    return dict(found)


async def test_a_collector_that_is_away_harms_nobody(http: aiohttp.ClientSession) -> None:
    async with traced("http://127.0.0.1:9") as stack:
        for _ in range(20):
            await ask(stack, http, unique_text(), True)
        await asyncio.sleep(1.5)  # an export has failed by now
        await ask(stack, http, unique_text(), True)
        started = time.monotonic()
        router = stack.children["router-1"]
        router.process.terminate()
        assert await router.wait(15.0) == 0
        assert time.monotonic() - started < 10.0
        assert "Traceback" not in router.log_tail()
        stack.router_urls.clear()
