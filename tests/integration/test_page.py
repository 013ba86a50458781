"""The page's files and data over HTTP: what they say, what they never say, and who may ask."""

import asyncio
import json
from typing import Any

import aiohttp
import msgspec
import pytest

from dualmap_cli.stack import Stack, StackOptions
from dualmap_router.ui.view import Request, Rings, Snapshot

from ..waiting import eventually
from .conftest import chat, connect, error_of, post, raw_request, unique_text

HOSTILE = "<img src=x onerror=alert(1)>/../%2e\"'&"


async def fetch(http: aiohttp.ClientSession, url: str, path: str) -> tuple[int, bytes, dict[str, str]]:
    async with http.get(url + path) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, await response.read(), headers


async def snapshot_of(http: aiohttp.ClientSession, url: str) -> Snapshot:
    status, body, headers = await fetch(http, url, "/ui/snapshot")
    assert (status, headers["content-type"], headers["cache-control"]) == (
        200,
        "application/json",
        "no-store",
    )
    return msgspec.json.decode(body, type=Snapshot)


async def request_of(http: aiohttp.ClientSession, url: str, request_id: str) -> Request:
    status, body, _ = await fetch(http, url, f"/ui/requests/{request_id}")
    assert status == 200, body
    return msgspec.json.decode(body, type=Request)


# The files


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_allows_nothing_from_elsewhere(
    system: Stack, http: aiohttp.ClientSession, path: str, content_type: str
) -> None:
    status, body, headers = await fetch(http, system.router_urls[0], path)
    assert (status, headers["content-type"]) == (200, content_type)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    text = body.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text and "https://" not in text, "everything comes from the router"
    assert "style=" not in text and "onclick" not in text and "innerHTML" not in text


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/../app.py", "/page/__init__.py", "/page/index.html", "/ui/", "/ui/secrets", "/ui"],
)
async def test_there_is_nothing_else(system: Stack, http: aiohttp.ClientSession, path: str) -> None:
    status, body, _ = await fetch(http, system.router_urls[0], path)
    assert status == 404
    error_of(json.loads(body))


@pytest.mark.parametrize("path", ["/", "/ui/snapshot", "/ui/stream"])
async def test_it_is_for_looking_only(system: Stack, http: aiohttp.ClientSession, path: str) -> None:
    status, answer, _ = await post(http, system.router_urls[0], path, {})
    assert status == 405
    assert error_of(answer)["code"] == "method_not_allowed"


# The data


async def test_a_request_is_explained(system: Stack, http: aiohttp.ClientSession) -> None:
    text, url = unique_text(9000), system.router_urls[0]
    for request_id in ("page-cold", "page-warm"):
        body = chat(text, stream=True)
        async with http.post(
            f"{url}/v1/chat/completions", json=body, headers={"x-request-id": request_id}
        ) as response:
            assert response.status == 200
            await response.read()
            headers = response.headers
    request = await request_of(http, url, "page-warm")
    (step,) = request.steps
    assert request.outcome == "answered"
    assert (request.status, request.streamed, request.model) == (200, True, "sim-model")
    assert request.candidates == headers["x-dualmap-candidates"].split(",")
    assert (step.instance, step.reason) == (headers["x-dualmap-instance"], headers["x-dualmap-reason"])
    assert str(step.cached_chunks) == headers["x-dualmap-cached-chunks"]
    assert {weighed.instance for weighed in step.weighed} >= set(request.candidates)
    chosen = next(weighed for weighed in step.weighed if weighed.instance == step.instance)
    assert chosen.score == min(weighed.score for weighed in step.weighed)
    assert chosen.ttft_s == pytest.approx(step.ttft_s, abs=1e-5)
    assert f"{step.ttft_s * 1e3:.1f}" == headers["x-dualmap-predicted-ttft-ms"]
    assert request.ttft_s is not None and 0 < request.ttft_s < request.took_s

    async def listed() -> Snapshot | None:
        snapshot = await snapshot_of(http, url)
        return snapshot if "page-warm" in [ended.id for ended in snapshot.ended] else None

    snapshot = await eventually(listed)
    assert snapshot.minutes.requests >= 2
    assert snapshot.minutes.p50_s is not None
    # The other router knows its own requests only.
    status, answer, _ = await fetch(http, system.router_urls[1], "/ui/requests/page-warm")
    assert status == 404
    assert error_of(json.loads(answer))["code"] == "request_not_found"


async def test_instances_say_what_the_pool_knows(system: Stack, http: aiohttp.ClientSession) -> None:
    async def heard() -> Snapshot | None:
        # The board is of whom its rebalancer has heard: in its first moment of nobody, or of one of the two.
        snapshot = await snapshot_of(http, system.router_urls[1])
        told = [instance for instance in snapshot.instances if instance.queued is not None]
        return snapshot if snapshot.board_known and len(told) == 2 else None

    snapshot = await eventually(heard)
    assert (snapshot.store_available, snapshot.leader) == (True, "rebalancer-1")
    for instance in snapshot.instances:
        assert (instance.state, instance.queued, instance.held) == ("active", 0, False)
        assert instance.telemetry_age_s is not None and instance.telemetry_age_s < 5
        assert instance.tokens_s > 100
        assert instance.kv_use is not None and 0 <= instance.kv_use <= 1


async def test_hot_prefixes_of_all_routers(system: Stack, http: aiohttp.ClientSession) -> None:
    text = unique_text(3000)
    for turn in range(12):
        url = system.router_urls[turn % 2]
        assert (await post(http, url, "/v1/chat/completions", chat(text)))[0] == 200
    key = ""

    async def listed() -> Any:
        nonlocal key
        snapshot = await snapshot_of(http, system.router_urls[0])
        key = snapshot.ended[0].key
        return next((prefix for prefix in snapshot.prefixes if prefix.key == key), None)

    prefix = await eventually(listed)
    assert 0 < prefix.share <= 1
    assert len(prefix.candidates) == 2
    assert prefix.owners
    assert all(0 <= place < 1 for place in prefix.places)
    _, body, _ = await fetch(http, system.router_urls[0], "/ui/rings")
    rings = msgspec.json.decode(body, type=Rings)
    assert rings.names == ["worker-1", "worker-2"]
    assert len(rings.first) == len(rings.second)
    assert set(rings.first) == {0, 1}


async def test_no_text_no_address_no_header(system: Stack, http: aiohttp.ClientSession) -> None:
    secret, url = "the-secret-of-the-prompt ", system.router_urls[0]
    await post(
        http,
        url,
        "/v1/chat/completions",
        chat(secret * 300),
        authorization="Bearer sk-secret",
        x_request_id="quiet",
    )
    await post(http, url, "/v1/chat/completions", chat(secret, model="no-such-model-secret"))

    async def listed() -> bytes | None:
        _, body, _ = await fetch(http, url, "/ui/snapshot")
        return body if b"quiet" in body else None

    body = await eventually(listed)
    assert b"secret" not in body
    assert b"127.0.0.1" not in body


async def test_a_hostile_id_is_only_text(system: Stack, http: aiohttp.ClientSession) -> None:
    url = system.router_urls[0]
    status, _, _ = await post(http, url, "/v1/chat/completions", chat("hello"), x_request_id=HOSTILE)
    assert status == 200

    async def listed() -> bool:
        return HOSTILE in [request.id for request in (await snapshot_of(http, url)).ended]

    # A snapshot is up to half a second old.
    await eventually(listed)
    _, _, headers = await fetch(http, url, "/ui/snapshot")
    assert headers["x-content-type-options"] == "nosniff"
    quoted = "".join(f"%{byte:02x}" for byte in HOSTILE.encode())
    async with http.get(aiohttp.client.URL(f"{url}/ui/requests/{quoted}", encoded=True)) as response:
        assert (await response.json())["id"] == HOSTILE


async def test_the_stream_goes_on_and_ends_with_its_viewer(
    system: Stack, http: aiohttp.ClientSession
) -> None:
    gone = await _client_gone(http, system.router_urls[0])
    async with http.get(f"{system.router_urls[0]}/ui/stream") as response:
        assert response.headers["content-type"] == "text/event-stream"
        times = []
        async for line in response.content:
            if line.startswith(b"data: "):
                times.append(msgspec.json.decode(line[len(b"data: ") :], type=Snapshot).at_s)
            if len(times) == 3:
                break
    assert 0.8 < times[2] - times[1] < 5

    async def closed() -> bool:
        _, body, _ = await fetch(http, system.router_urls[0], "/metrics")
        return b"dualmap_page_viewers 0.0" in body

    await eventually(closed)
    assert await _client_gone(http, system.router_urls[0]) == gone, "no request of a client"


async def _client_gone(http: aiohttp.ClientSession, url: str) -> bytes:
    _, body, _ = await fetch(http, url, "/metrics")
    return next(line for line in body.splitlines() if line.startswith(b"dualmap_client_gone_total "))


async def test_who_reads_nothing_holds_nothing_up(system: Stack, http: aiohttp.ClientSession) -> None:
    reader, writer = await connect(system.router_urls[0])
    writer.write(raw_request("/ui/stream", method="GET"))
    await writer.drain()
    await asyncio.sleep(2.5)
    assert (await snapshot_of(http, system.router_urls[0])).router == "router-1"
    writer.transport.abort()
    assert reader


# What is wrong


async def test_outages_are_told_and_off_is_off(http: aiohttp.ClientSession) -> None:
    async with Stack(StackOptions(routers=1, workers=2, rebalancers=1, time_scale=4.0)) as stack:
        assert stack.store is not None
        url = stack.router_urls[0]
        stack.start_router(ui="false")
        off = str((await stack.event("router-2", "router.ready"))["url"])
        for path in ("/", "/ui/snapshot", "/page/app.js"):
            status, body, _ = await fetch(http, off, path)
            assert status == 404
            assert error_of(json.loads(body))["code"] == "not_found"

        # 1. Without Redis: its own work, and its own last requests' prefixes.
        body = chat(unique_text(3000))
        assert (await post(http, url, "/v1/chat/completions", body, x_request_id="before"))[0] == 200
        stack.store.pause()
        try:
            await eventually(lambda: _store_is(http, url, False))
            assert (await post(http, url, "/v1/chat/completions", body, x_request_id="without"))[0] == 200
            without = await request_of(http, url, "without")
            assert without.steps[0].alone
            snapshot = await snapshot_of(http, url)
            assert not snapshot.board_known
            assert len(snapshot.instances) == 2
            assert without.key in [prefix.key for prefix in snapshot.prefixes]
        finally:
            stack.store.resume()
        await eventually(lambda: _store_is(http, url, True))

        # 2. An instance that leaves, and one that dies.
        await stack.children["worker-2"].stop()
        await eventually(lambda: _left(http, url, "worker-2"))
        await stack.children["worker-1"].kill()

        async def dead() -> bool:
            states = {i.name: i.state for i in (await snapshot_of(http, url)).instances}
            return states.get("worker-1") in ("gone", "unreachable")

        await eventually(dead)
        await eventually(lambda: _left(http, url, "worker-1"))


async def _store_is(http: aiohttp.ClientSession, url: str, available: bool) -> bool:
    return (await snapshot_of(http, url)).store_available is available


async def _left(http: aiohttp.ClientSession, url: str, name: str) -> bool:
    return name in [gone.name for gone in (await snapshot_of(http, url)).gone]
