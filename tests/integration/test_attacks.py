"""Attacks on a router that asks for keys: each gets what its table says, reaches no engine, and leaves nothing."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from dualmap.prefix import tenant_salt
from dualmap_cli.stack import StackOptions

from ..waiting import eventually
from .attacks import ATTACKS, KEY, Attack, body, head, page, post
from .conftest import close, connect, error_of, leftovers, running
from .guarded import ACME, write_keys
from .recording_engine import RecordingEngine, recording_engine_aside

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Target:
    """A router, and the engine behind it."""

    url: str
    engine: RecordingEngine


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One router that waits a second for slow clients; after all attacks it holds nothing."""
    flags = {
        "api_keys_file": write_keys(tmp_path_factory.mktemp("keys") / "keys.json"),
        "client_head_s": 1.0,
        "client_body_s": 1.0,
        "max_body_bytes": 2 << 20,
    }
    with recording_engine_aside() as engine:
        options = StackOptions(
            routers=1, workers=1, rebalancers=0, engine_urls=[engine.url], router_flags=flags
        )
        for stack in running(options):
            yield Target(stack.router_urls[0], engine)
            assert asyncio.run(leftovers(stack)).clean
            log = (stack.logs / "router-1.log").read_text()
            assert '"request.failed"' not in log
            assert ACME not in log


@pytest.fixture(autouse=True)
async def still_serves(target: Target) -> AsyncIterator[None]:
    """Whatever was tried, who has a key is served."""
    yield
    statuses, _ = await sent(target.url, post())
    assert statuses == [200]


async def sent(url: str, data: bytes, cut: bool = False) -> tuple[list[int], bytes]:
    """(statuses of all answers, all bytes) once the router has closed; `cut` ends the sending half behind the data."""
    reader, writer = await connect(url)
    answer = b""
    try:
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                if cut:
                    writer.write_eof()
                while chunk := await reader.read(1 << 16):
                    answer += chunk
    finally:
        await close(writer)
    return [int(status) for status in _STATUS.findall(answer)], answer


def test_the_page_says_what_is_tried() -> None:
    assert (Path(__file__).parents[2] / "docs/attacks.md").read_text() == page()


def test_the_table_has_no_name_twice() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
async def test_an_attack(target: Target, attack: Attack) -> None:
    target.engine.asked.clear()
    statuses, answer = await sent(target.url, attack.data, cut=not attack.gets)
    assert tuple(statuses) == attack.gets
    assert len(target.engine.asked) == attack.reaches
    assert not any(b"smuggled" in asked for asked in target.engine.asked)
    said = answer.rpartition(b"\r\n\r\n")[2]
    if statuses and statuses[-1] >= 400 and said:
        assert attack.says in error_of(json.loads(said))["message"]
        assert ACME.encode() not in answer


# What takes more than bytes


async def test_a_head_that_never_ends(target: Target) -> None:
    assert await _drip(target.url, head("content-length: 2")[:-2], b"x-a: b\r\n") == [408]


async def test_a_body_that_never_ends(target: Target) -> None:
    begun = head("content-length: 1000000") + b'{"messages": "'
    assert await _drip(target.url, begun, b"a") == [408]


async def test_chunks_that_never_end(target: Target) -> None:
    assert await _drip(target.url, head("transfer-encoding: chunked"), b"1\r\na\r\n") == [408]


async def _drip(url: str, begun: bytes, drop: bytes) -> list[int]:
    """Statuses of a request that keeps coming, drop by drop."""
    reader, writer = await connect(url)
    answer = asyncio.ensure_future(reader.read(1 << 16))
    try:
        async with asyncio.timeout(20):
            writer.write(begun)
            while not answer.done():
                writer.write(drop)
                await asyncio.wait([answer], timeout=0.05)
            return [int(status) for status in _STATUS.findall(answer.result())]
    finally:
        answer.cancel()
        await close(writer)


async def test_a_thousand_connections_that_say_nothing(target: Target) -> None:
    writers = [(await connect(target.url))[1] for _ in range(1000)]
    try:
        assert (await sent(target.url, post()))[0] == [200]
    finally:
        for writer in writers:
            await close(writer)


async def test_headers_that_are_not_for_the_engine(target: Target) -> None:
    """Hop by hop, nominated by Connection, or ours: none passes inward."""
    hop = (
        "connection: upgrade, x-mine, keep-alive", "upgrade: websocket", "x-mine: a", "keep-alive: timeout=5",
        "te: trailers", "trailer: x-late", "proxy-authorization: Basic abc", "proxy-connection: keep-alive",
        "x-dualmap-tenant: ops", "x-dualmap-instance: worker-9", "x-dualmap-reason: escape", "http2-settings: AA",
        "expect: 100-continue",
    )  # fmt: skip
    statuses, _ = await sent(target.url, post(*hop, "x-theirs: b", "x-forwarded-for: 1.2.3.4"))
    assert statuses[-1] == 200
    headers, _ = target.engine.last()
    assert headers["x-theirs"] == "b"
    assert headers["x-forwarded-for"] == "1.2.3.4"
    names = {header.partition(":")[0] for header in hop} - {"connection", "keep-alive"}
    assert not names & headers.keys()
    assert "authorization" not in headers
    assert headers.get("connection", "keep-alive") == "keep-alive"


async def test_headers_that_are_not_for_the_client(target: Target) -> None:
    """Hop by hop, nominated by the engine's Connection, or what only routers say: none passes outward."""
    target.engine.headers = (
        "connection: x-inner", "x-inner: a", "keep-alive: timeout=5", "proxy-authenticate: Basic", "trailer: x-late",
        "upgrade: h2c", "te: trailers", "x-dualmap-instance: forged", "x-dualmap-secret: b", "x-outer: c",
    )  # fmt: skip
    try:
        _, answer = await sent(target.url, post())
    finally:
        target.engine.headers = ()
    lines = answer.partition(b"\r\n\r\n")[0].lower().decode().split("\r\n")[1:]
    pairs = [line.partition(": ")[::2] for line in lines]
    names = {name for name, _ in pairs}
    assert ("x-outer", "c") in pairs
    assert (
        not {"x-inner", "keep-alive", "proxy-authenticate", "trailer", "upgrade", "te", "x-dualmap-secret"}
        & names
    )
    assert [value for name, value in pairs if name == "x-dualmap-instance"] == ["worker-1"]


@pytest.mark.parametrize(
    "spoofed",
    [
        body(cache_salt=tenant_salt("other")),
        body()[:-1] + b', "cache\\u005fsalt": "%b"}' % tenant_salt("other").encode(),
        b'{"cache_salt": "a", "cache_salt": "%b", ' % tenant_salt("other").encode() + body()[1:],
    ],
    ids=["a salt of another tenant", "its name in disguise", "its name twice"],
)
async def test_anothers_cache(target: Target, spoofed: bytes) -> None:
    assert (await sent(target.url, post(data=spoofed)))[0] == [200]
    _, asked = target.engine.last()
    salt = json.loads(asked)["cache_salt"]
    assert salt != tenant_salt("other")
    assert salt in {tenant_salt("acme", own) for own in ("", "a", tenant_salt("other"))}


async def test_who_guesses_keys_is_counted(target: Target, http: aiohttp.ClientSession) -> None:
    before = await _failures(http, target.url)
    await asyncio.gather(*(sent(target.url, post(key=f"x-api-key: guess-{number}")) for number in range(50)))
    assert await _failures(http, target.url) == before + 50


async def _failures(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(f"{url}/metrics") as page:
        found = re.search(r'^dualmap_auth_failures_total\{why="unknown"\} ([0-9.]+)', await page.text(), re.M)
    return int(float(found[1])) if found else 0


async def test_a_client_that_goes_while_it_is_refused(target: Target, http: aiohttp.ClientSession) -> None:
    for _ in range(20):
        _, writer = await connect(target.url)
        writer.write(head("content-length: 1000000", key=KEY + "x") + b"a" * 1000)
        writer.transport.abort()

    async def none_held() -> bool:
        async with http.get(f"{target.url}/readyz") as page:
            return bool((await page.json())["held_body_bytes"] == 0)

    await eventually(none_held)
