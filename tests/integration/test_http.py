"""The HTTP surface: operators' endpoints, headers, passthrough and what stays inside."""

import asyncio
import itertools
import json

import aiohttp
import pytest

from dualmap_cli.stack import Stack
from dualmap_sim.engine.canonical import answers

from .conftest import (
    MODEL,
    books_of,
    chat,
    close,
    completion,
    connect,
    error_of,
    exchange,
    post,
    raw_request,
    samples,
    stats,
    unique_text,
)

LONG = 240_000
"""Bytes of a prompt whose prefill takes a second or more."""


# Operators


async def test_health_and_readiness(system: Stack, http: aiohttp.ClientSession) -> None:
    for number, url in enumerate(system.router_urls, 1):
        async with http.get(f"{url}/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with http.get(f"{url}/readyz") as response:
            state = await response.json()
        assert response.status == 200
        assert (state["ready"], state["router"], state["pool"]) == (True, f"router-{number}", "demo")
        assert (state["store"], state["instances"]) == ("available", ["worker-1", "worker-2"])


async def test_models(system: Stack, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{system.router_urls[0]}/v1/models") as response:
        models = await response.json()
    assert models["object"] == "list"
    [model] = models["data"]
    assert (model["id"], model["object"], model["parent"]) == (MODEL, "model", None)
    assert model["max_model_len"] > 0


async def test_metrics_sum_up(system: Stack, http: aiohttp.ClientSession) -> None:
    url = system.router_urls[0]
    before = await samples(http, url)
    served, streamed = 5, 2
    for number in range(served):
        body = {**completion(unique_text()), "stream": number < streamed}
        async with http.post(f"{url}/v1/completions", json=body) as response:
            assert response.status == 200
            await response.read()
    assert (await post(http, url, "/v1/completions", completion("")))[0] == 400
    after = await samples(http, url)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("dualmap_requests_total") == served + 1
    assert grown("dualmap_decisions_total") == served
    assert grown("dualmap_decision_seconds_count") == served
    assert grown("dualmap_answer_seconds_count") == served
    # An answer that is not streamed shows no first byte.
    assert grown("dualmap_ttft_seconds_count") == streamed
    assert grown("dualmap_ttft_error_seconds_count") == streamed
    assert grown("dualmap_slo_total") == streamed
    assert grown("dualmap_prompt_tokens_total") >= served * 50
    assert after["dualmap_reachable_instances"] == 2
    assert after["dualmap_in_flight"] == after["dualmap_live_charges"] == after["dualmap_exchanges"] == 0


# Headers


async def test_the_answer_says_what_was_decided(system: Stack, http: aiohttp.ClientSession) -> None:
    body = chat(unique_text(5000))
    for path_body, stream in ((body, False), ({**body, "stream": True}, True)):
        async with http.post(f"{system.router_urls[1]}/v1/chat/completions", json=path_body) as response:
            await response.read()
        headers = response.headers
        assert headers["x-dualmap-router"] == "router-2"
        assert headers["x-dualmap-instance"] in headers["x-dualmap-candidates"].split(",")
        assert headers["x-dualmap-reason"] in ("affinity", "load")
        assert headers["x-dualmap-cached-chunks"] == ("2" if stream else "0")
        assert float(headers["x-dualmap-predicted-ttft-ms"]) > 0
        assert (headers["x-dualmap-moves"], headers["x-dualmap-attempts"]) == ("0", "1")
        assert len(headers["x-request-id"]) == 32
        assert "x-dualmap-degraded" not in headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/version", "/nowhere"])
async def test_request_ids_are_echoed(system: Stack, http: aiohttp.ClientSession, path: str) -> None:
    method = "POST" if "chat" in path else "GET"
    name = f"mine-{unique_text(0).strip()}"
    async with http.request(
        method, system.router_urls[0] + path, json=chat("hello"), headers={"x-request-id": name}
    ) as response:
        await response.read()
    assert response.headers.getall("x-request-id") == [name]
    if "chat" in path:
        assert await books_of(http, system, name) == {"started": 1, "finished": 1, "aborted": 0, "failed": 0}


async def test_one_id_for_two_requests(system: Stack, http: aiohttp.ClientSession) -> None:
    name = f"twice-{unique_text(0).strip()}"
    bodies = [chat(unique_text(), max_tokens=8) for _ in range(4)]
    got = await asyncio.gather(
        *(
            post(http, system.router_urls[0], "/v1/chat/completions", body, x_request_id=name)
            for body in bodies
        )
    )
    for body, (status, answer, _) in zip(bodies, got, strict=True):
        assert status == 200
        assert answers(body, answer["choices"][0]["message"]["content"])


async def test_headers_for_the_router_stay_there(system: Stack, http: aiohttp.ClientSession) -> None:
    asked = {"x_dualmap_slo_ttft_ms": "2500", "x_dualmap_priority": "-3", "x_dualmap_policy": "round-robin"}
    url = system.router_urls[0]
    status, _, headers = await post(http, url, "/v1/chat/completions", chat("hello"), **asked)
    assert (status, headers["x-dualmap-reason"]) == (200, "policy")


async def test_a_prefix_key_decides_the_candidates(system: Stack, http: aiohttp.ClientSession) -> None:
    pairs: dict[str, set[str]] = {}
    for key in ("a", "b", "c", "d", "e", "f"):
        for url in system.router_urls:
            _, _, headers = await post(
                http, url, "/v1/chat/completions", chat(unique_text(3000)), x_dualmap_prefix_key=key
            )
            pairs.setdefault(key, set()).add(headers["x-dualmap-candidates"])
    assert all(len(pair) == 1 for pair in pairs.values())


# Affinity


async def test_two_routers_agree_on_pair_and_instance(system: Stack, http: aiohttp.ClientSession) -> None:
    orders = set()
    for _ in range(6):
        prefix = unique_text(9000)
        seen = []
        for turn, url in enumerate(system.router_urls * 2):
            status, _, headers = await post(
                http, url, "/v1/completions", completion(f"{prefix} question {turn}")
            )
            assert status == 200
            seen.append((headers["x-dualmap-candidates"], headers["x-dualmap-instance"]))
        assert len(set(seen)) == 1
        orders.add(seen[0][0])
    assert orders <= {"worker-1,worker-2", "worker-2,worker-1"}


async def test_a_growing_conversation_stays(system: Stack, http: aiohttp.ClientSession) -> None:
    messages = [{"role": "system", "content": unique_text(6000)}]
    homes, depths = set(), []
    for turn in range(6):
        messages.append({"role": "user", "content": f"turn {turn}: " + "why " * 700})
        url = system.router_urls[turn % 2]
        body = {"model": MODEL, "messages": messages, "max_tokens": 8}
        _, answer, headers = await post(http, url, "/v1/chat/completions", body)
        homes.add(headers["x-dualmap-instance"])
        depths.append(int(headers["x-dualmap-cached-chunks"]))
        said = answer["choices"][0]["message"]["content"]
        assert answers(body, said)
        messages.append({"role": "assistant", "content": said})
    assert len(homes) == 1
    assert depths[0] == 0
    assert all(a < b for a, b in itertools.pairwise(depths)), depths


async def test_tenants_share_no_prefix(system: Stack, http: aiohttp.ClientSession) -> None:
    text = unique_text(6000)
    depths = []
    for salt in ("tenant-a", "tenant-b", "tenant-a"):
        body = completion(text, cache_salt=salt)
        _, _, headers = await post(http, system.router_urls[0], "/v1/completions", body)
        depths.append(headers["x-dualmap-cached-chunks"])
    assert depths == ["0", "0", "2"]


# What passes and what does not


async def test_passthrough(system: Stack, http: aiohttp.ClientSession) -> None:
    url = system.router_urls[0]
    async with http.get(f"{url}/version") as response:
        assert (await response.json())["version"].endswith("simulated")
    status, tokens, headers = await post(http, url, "/tokenize", {"model": MODEL, "prompt": "abcdefgh"})
    assert (status, tokens["count"]) == (200, 2)
    assert "x-dualmap-instance" not in headers
    status, text, _ = await post(http, url, "/detokenize", {"tokens": tokens["tokens"]})
    assert (status, text) == (200, {"prompt": "abcdefgh"})
    # An error of the engine is the engine's.
    status, answer, _ = await post(http, url, "/tokenize", {"model": MODEL})
    assert (status, answer["error"]["param"]) == (400, "body.prompt")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/healthz", 200),
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/version", 200),
        ("OPTIONS", "/v1/embeddings", 405),
        ("OPTIONS", "/healthz", 404),
        ("DELETE", "/v1/chat/completions", 405),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/completions", 405),
        ("GET", "/debug/explain", 405),
        ("POST", "/healthz", 404),
        ("POST", "/metrics", 404),
        ("PATCH", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/favicon.ico", 404),
        ("BREW", "/coffee", 400),
    ],
)
async def test_methods(
    system: Stack, http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(method, system.router_urls[0] + path) as response:
        body = await response.read()
    assert response.status == status
    if method == "HEAD":
        assert not body
    elif status >= 400:
        error_of(json.loads(body))


INSIDE = (
    "/admin/faults",
    "/admin/crash",
    "/reset_prefix_cache",
    "/shutdown",
    "/sleep",
    "/collective_rpc",
    "/v1/../admin/faults",
    "/v1/%2e%2e/admin/faults",
    "/v1/%2E./admin/faults",
    "/v1/.%2e/admin/crash",
    "/tokenize/../admin/faults",
    "/tokenize/%2e%2e/reset_prefix_cache",
    "/v1/x/%2e%2e/%2e%2e/admin/faults",
    "/v1/..%2fadmin/faults",
    "/v1/%252e%252e/admin/faults",
    "/v1/%25252e%25252e/admin/faults",
    "/v1/x%0d%0ahost:%20y",
    "/v1/%ff%00%c3%28",
    "/v1/x%3f%23/../admin/faults",
    "/v1/..\\admin\\faults",
    "//admin/faults",
    "/./admin/faults",
    "http://engine/admin/faults",
)


@pytest.mark.parametrize("target", INSIDE)
async def test_an_engines_administration_stays_inside(
    system: Stack, http: aiohttp.ClientSession, target: str
) -> None:
    # Something is cached that a reset would lose.
    await post(http, system.router_urls[0], "/v1/completions", completion(unique_text(2000)))
    before = [await stats(http, url) for url in system.engine_urls]
    status, body = await exchange(
        system.router_urls[0], raw_request(target, b'{"hang": true}', "POST", "connection: close")
    )
    assert status in (400, 404), body
    for url, then in zip(system.engine_urls, before, strict=True):
        async with http.get(f"{url}/admin/faults") as response:
            assert (await response.json())["hang"] is False
        assert (await stats(http, url))["cached_blocks"] == then["cached_blocks"]
    assert sum(then["cached_blocks"] for then in before) > 0


async def test_an_engines_metrics_stay_inside(system: Stack, http: aiohttp.ClientSession) -> None:
    for path in ("/metrics", "/v1/%2e%2e/metrics"):
        status, body = await exchange(
            system.router_urls[0], raw_request(path, b"", "GET", "connection: close")
        )
        assert b"vllm:" not in body
        assert status == (200 if path == "/metrics" else 404)


async def test_pipelined_and_kept_alive(system: Stack) -> None:
    """One connection carries request after request, in order."""
    reader, writer = await connect(system.router_urls[0])
    try:
        for size in (100, 3000, 100):
            body = json.dumps(completion(unique_text(size))).encode()
            writer.write(raw_request("/v1/completions", body))
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            assert json.loads(await reader.readexactly(length))["object"] == "text_completion"
    finally:
        await close(writer)
