import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from dualmap_cli.load import LoadError, LoadOptions, Progress, RequestRecord, Slo, run_load
from dualmap_cli.load.exchange import first_model
from dualmap_sim.workloads import Message, Span, TimedRequest
from tests.cli.load.endpoint import TEXT, Endpoint, serve


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with serve() as listening:
        yield listening


def request(number: int = 0, mode: str = "normal", at_s: float = 0.0, **values: object) -> TimedRequest:
    fields: dict[str, object] = {
        "prompt": (Span(f"p{number}", 20),),
        "headers": (("x-test-mode", mode),),
        **values,
    }
    return TimedRequest(at_s=at_s, request_id=f"r{number}", output_tokens=3, **fields)  # type: ignore[arg-type]


async def outcome(endpoint: Endpoint, mode: str, **options: object) -> RequestRecord:
    result = await run_load([request(mode=mode)], [endpoint.url], LoadOptions(**options))  # type: ignore[arg-type]
    assert len(result.records) == 1
    assert result.report.answered + result.report.errors == 1
    assert result.report.errors == (result.records[0].error is not None)
    return result.records[0]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_measured(endpoint: Endpoint, chat: bool, stream: bool) -> None:
    seen: list[str] = []

    def check(request: TimedRequest, text: str) -> bool:
        seen.append(text)
        return True

    messages = (Message("user", (Span("m", 20),)),) if chat else ()
    prompt = () if chat else (Span("m", 20),)
    options = LoadOptions(
        model="m", stream=stream, time_scale=10, api_key="key", check=check, slo=Slo(3), send_slo=True
    )
    one = request(messages=messages, prompt=prompt, tenant="acme")
    result = await run_load([one], [endpoint.url], options)
    (record,) = result.records
    assert record.ok
    assert seen == ["".join(TEXT)]
    assert record.ttft_s is not None and record.e2e_s is not None
    assert 0 < record.ttft_s <= record.e2e_s < 10 * 60
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (40, 3, 16)
    assert (record.instance, record.router, record.reason) == ("i-1", "r-1", "affinity")
    assert (record.candidates, record.cached_chunks, record.moves) == (["i-1", "i-2"], 4, 1)
    assert record.predicted_ttft_s == pytest.approx(0.125)
    assert record.events == (3 if stream else 0)
    (body,), (headers,) = endpoint.bodies, endpoint.headers
    assert body["model"] == "m"
    assert body["user"] == "acme"
    assert body["max_tokens"] == 3
    assert headers["authorization"] == "Bearer key"
    assert headers["x-dualmap-slo-ttft-ms"] == "300"
    assert headers["x-request-id"] == f"{options.run_id}-r0"
    assert result.report.cached_token_share == 16 / 40
    assert result.report.moves == 1


@pytest.mark.parametrize(
    ("mode", "kind", "detail"),
    [
        ("error", "http_500", "boom"),
        ("cut", "cut", ""),
        ("short", "cut", r"the stream ended without [DONE]"),
        ("error_event", "stream_error", "engine died"),
        ("empty", "empty", "no content"),
        ("garbage", "cut", "not a JSON answer"),
    ],
)
async def test_failures_are_told_apart(endpoint: Endpoint, mode: str, kind: str, detail: str) -> None:
    record = await outcome(endpoint, mode)
    assert record.error == kind
    assert detail in (record.detail or "")
    assert record.finished
    assert not record.within_slo


@pytest.mark.parametrize("mode", ["hang", "hang_head"])
async def test_a_hang_ends_in_a_timeout(endpoint: Endpoint, mode: str) -> None:
    record = await outcome(endpoint, mode, timeout_s=2, time_scale=10)
    assert record.error == "timeout"
    assert record.e2e_s == pytest.approx(2, abs=1.5)
    assert (record.ttft_s is not None) == (mode == "hang")


async def test_no_listener_is_a_connect_error(endpoint: Endpoint) -> None:
    async with serve() as gone:
        url = gone.url
    result = await run_load([request(0), request(1)], [url, endpoint.url])
    assert [record.error for record in result.records] == ["connect", None]
    assert result.report.errors_by_kind == {"connect": 1}


async def test_two_dones_are_a_duplicate(endpoint: Endpoint) -> None:
    assert (await outcome(endpoint, "double")).duplicate
    assert not (await outcome(endpoint, "normal")).duplicate


async def test_a_wrong_text_is_an_error(endpoint: Endpoint) -> None:
    assert (await outcome(endpoint, "normal", check=lambda _, text: text == "else")).error == "wrong_text"


async def test_a_slow_answer_shows_its_gaps(endpoint: Endpoint) -> None:
    result = await run_load([request(mode="slow")], [endpoint.url], LoadOptions(time_scale=10))
    (record,) = result.records
    assert record.ttft_s is not None and record.ttft_s >= 0.45
    assert record.max_gap_s is not None and record.max_gap_s >= 0.45
    assert result.report.itl_s.p50 is not None and result.report.itl_s.p50 >= 0.4


async def test_arrivals_are_kept_and_scaled(endpoint: Endpoint) -> None:
    requests = [request(number, at_s=number * 2.0) for number in range(5)]
    result = await run_load(requests, [endpoint.url], LoadOptions(time_scale=40))
    assert [record.request_id.split("-")[1] for record in result.records] == [f"r{n}" for n in range(5)]
    for record in result.records:
        # Never early; late only by what the machine lags, here within 250 real ms.
        assert 0 <= record.sent_s - record.due_s < 10
    # It is counted from the first one's sending, which may have lagged more than the last one's.
    assert result.report.duration_s >= 8 - result.records[0].sent_s


async def test_targets_take_turns_and_ids_are_unique() -> None:
    async with serve() as one, serve() as two:
        result = await run_load([request(number) for number in range(10)], [one.url, f"{two.url}/v1/"])
    assert (len(one.bodies), len(two.bodies)) == (5, 5)
    assert len({headers["x-request-id"] for headers in one.headers + two.headers}) == 10
    assert result.report.answered == 10


async def test_the_bound_on_requests_in_flight_holds(endpoint: Endpoint) -> None:
    requests = [request(number, mode="slow") for number in range(6)]
    result = await run_load(requests, [endpoint.url], LoadOptions(max_in_flight=2))
    assert endpoint.most_in_flight == 2
    assert result.report.answered == 6
    # Two that end together let the next two in, of which only the first waited.
    assert 2 <= result.report.held_back <= 4


async def test_a_stop_reports_what_there_is(endpoint: Endpoint) -> None:
    stop = asyncio.Event()
    requests = [request(0), request(1, mode="hang", at_s=0.2), request(2, at_s=3600)]
    running = asyncio.create_task(run_load(requests, [endpoint.url], stop=stop))
    while len(endpoint.bodies) < 2:
        endpoint.arrived.clear()
        await endpoint.arrived.wait()
    stop.set()
    report = (await running).report
    assert (report.sent, report.answered, report.errors, report.unfinished) == (2, 1, 0, 1)
    assert report.within_slo_share == 1


async def test_cancelling_cancels_the_requests(endpoint: Endpoint) -> None:
    running = asyncio.create_task(run_load([request(mode="hang")], [endpoint.url]))
    await endpoint.arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() >= {asyncio.current_task()}


async def test_a_request_that_got_no_answer_is_sent_to_the_next_url(endpoint: Endpoint) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = await run_load([request(0), request(1)], [dead, endpoint.url], LoadOptions(retries=1))
    first, second = result.records
    assert (first.ok, first.target, first.retried) == (True, endpoint.url, ["connect"])
    assert first.ttft_s is not None and first.ttft_s > 0.1, "counts from the first try"
    [failed] = first.failed_tries
    assert failed.target == dead
    assert first.sent_s <= failed.at_s < first.sent_s + first.ttft_s - 0.1, "before it waited and asked again"
    assert (second.ok, second.retried) == (True, [])
    assert result.report.sent == result.report.answered == 2


async def test_a_stream_that_is_cut_each_time_fails_in_the_end(endpoint: Endpoint) -> None:
    record = await outcome(endpoint, "cut", retries=2)
    assert (record.error, record.retried) == ("cut", ["cut", "cut"])
    assert len(endpoint.bodies) == 3


async def test_what_an_engine_says_is_not_asked_again(endpoint: Endpoint) -> None:
    record = await outcome(endpoint, "error", retries=2)
    assert (record.error, record.retried) == ("http_500", [])


async def test_progress_comes_while_it_runs_and_at_the_end(endpoint: Endpoint) -> None:
    shown: list[Progress] = []
    requests = [request(0), request(1, mode="error"), request(2, at_s=0.3)]
    options = LoadOptions(progress_interval_s=0.05)
    await run_load(requests, [endpoint.url], options, shown.append)
    assert len(shown) > 2
    last = shown[-1]
    assert (last.total, last.sent, last.answered, last.errors, last.in_flight) == (3, 3, 2, 1, 0)
    assert last.moves == 2
    assert last.within_slo_share == 2 / 3
    assert last.instances == {"i-1": 2}
    assert last.ttft_p50_s is not None


async def test_a_prompt_over_a_megabyte(endpoint: Endpoint) -> None:
    result = await run_load([request(prompt=(Span("long", 300_000),))], [endpoint.url])
    assert result.report.answered == 1
    assert len(str(endpoint.bodies[0]["prompt"])) == 1_200_000


async def test_nothing_to_send(endpoint: Endpoint) -> None:
    assert (await run_load([], [endpoint.url])).report.sent == 0


async def test_the_first_model_is_found(endpoint: Endpoint) -> None:
    assert await first_model(endpoint.url) == "served-model"


async def test_bad_asks_name_themselves() -> None:
    with pytest.raises(LoadError, match="at least one URL"):
        await run_load([], [])
    with pytest.raises(LoadError, match="not an http"):
        await run_load([], ["localhost:80"])
    with pytest.raises(LoadError, match="time_scale must be above 0"):
        LoadOptions(time_scale=0)
    with pytest.raises(LoadError, match="retries must be"):
        LoadOptions(retries=-1)


def test_an_slo_may_grow_with_the_prompt() -> None:
    assert Slo(2, 0.5).limit_s(request(prompt=(Span("p", 4000),))) == 4
    assert Slo(2, 0.5).limit_s(request(slo_ttft_s=1.5)) == 1.5
