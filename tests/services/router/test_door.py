"""The door: who comes in, what is said to who does not, and what is left of the credentials."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dualmap_router.caller import ANYONE, NOBODY
from dualmap_router.door import Door, KeyDoor, OpenDoor, make_door
from dualmap_router.errors import ApiError
from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.key_watch import KeyWatch
from dualmap_router.settings import RouterSettings
from dualmap_service.lifecycle import ServiceFailedError

from ...waiting import eventually
from .keys_file import entry, write
from .serving import error_of, get, post, serving

KEY, OLD = "the-key", "the-old-key"


@pytest.fixture
def away() -> list[str]:
    """Why callers were turned away."""
    return []


@pytest.fixture
def door(tmp_path: Path, away: list[str]) -> Door:
    """A door with one key that is good and one that has expired."""
    keys = (entry(KEY), entry(OLD, expires="2020-01-01T00:00:00Z"))
    return KeyDoor(KeyWatch(str(write(tmp_path / "keys.json", *keys))), away.append)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer  {KEY} ")],
        [("x-api-key", KEY)],
        [("x-api-key", KEY), ("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
    ],
)
def test_who_has_a_key(door: Door, headers: list[tuple[str, str]], away: list[str]) -> None:
    headers += [("x-other", "stays")]
    caller = door.enter(b"POST", b"/v1/chat/completions", headers)
    assert (caller.tenant, caller.admin) == ("acme", False)
    assert headers == [("x-other", "stays")]
    assert away == []


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], "missing"),
        ([("cookie", KEY)], "missing"),
        ([("authorization", "")], "malformed"),
        ([("authorization", KEY)], "malformed"),
        ([("authorization", f"Basic {KEY}")], "malformed"),
        ([("authorization", "Bearer")], "malformed"),
        ([("x-api-key", "  ")], "malformed"),
        ([("authorization", f"Bearer {KEY}"), ("x-api-key", "other")], "malformed"),
        ([("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")], "malformed"),
        ([("authorization", f"Basic {KEY}"), ("x-api-key", KEY)], "malformed"),
        ([("authorization", f"Bearer {KEY}x")], "unknown"),
        ([("authorization", f"Bearer {KEY.upper()}")], "unknown"),
        ([("x-api-key", "\xff\xe9")], "unknown"),
        ([("x-api-key", "a" * 50_000)], "unknown"),
        ([("x-api-key", OLD)], "expired"),
    ],
    ids=range(15),
)
def test_who_has_none(door: Door, headers: list[tuple[str, str]], why: str, away: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        door.enter(b"POST", b"/v1/chat/completions", headers)
    error = caught.value
    assert (error.status, error.code, away) == (401, "invalid_api_key", [why])
    assert dict(error.headers)["www-authenticate"].startswith("Bearer")
    assert KEY.encode() not in error.body()


@pytest.mark.parametrize(
    ("method", "target", "is_open"),
    [
        (b"GET", b"/healthz", True),
        (b"HEAD", b"/readyz", True),
        (b"GET", b"/metrics?name=x", True),
        (b"POST", b"/healthz", False),
        (b"GET", b"/healthz/", False),
        (b"GET", b"/%68ealthz", False),
        (b"GET", b"//healthz", False),
        (b"GET", b"http://a/healthz", False),
        (b"GET", b"/v1/models", False),
        (b"GET", b"/", True),
        (b"GET", b"/page/app.js", True),
        (b"POST", b"/", False),
        (b"GET", b"/ui/snapshot", False),
        (b"GET", b"/debug/explain", False),
        (b"GET", b"/v1/x?/healthz", False),
        (b"OPTIONS", b"*", False),
    ],
)
def test_what_is_open(door: Door, method: bytes, target: bytes, is_open: bool) -> None:
    if is_open:
        assert door.enter(method, target, []) is NOBODY
    else:
        with pytest.raises(ApiError):
            door.enter(method, target, [])


def test_metrics_can_be_closed(tmp_path: Path) -> None:
    keys = str(write(tmp_path / "keys.json", entry(KEY)))
    closed = make_door(RouterSettings(api_keys_file=keys, open_metrics=False), lambda why: None)
    assert closed.enter(b"GET", b"/readyz", []) is NOBODY
    with pytest.raises(ApiError):
        closed.enter(b"GET", b"/metrics", [])


async def test_a_key_holds_until_it_expires(tmp_path: Path) -> None:
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    path = write(tmp_path / "keys.json", entry(KEY, expires=expires))
    door = KeyDoor(KeyWatch(str(path)), lambda why: None)

    def expired() -> bool:
        try:
            door.enter(b"GET", b"/v1/models", [("x-api-key", KEY)])
        except ApiError:
            return True
        return False

    assert not expired()
    await eventually(expired)


def test_an_open_door_leaves_credentials_to_the_engine() -> None:
    headers = [("authorization", "Bearer engines")]
    assert OpenDoor().enter(b"GET", b"/debug/explain", headers) is ANYONE
    assert headers == [("authorization", "Bearer engines")]


# On a connection


async def test_a_body_is_not_waited_for_nor_kept(door: Door) -> None:
    handled: list[str] = []

    async def handler(request: HttpRequest, response: HttpResponse) -> None:
        handled.append(request.caller.name)
        response.send(200, [], b"")

    async with serving(handler, enter=door.enter) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, headers["connection"], headers["www-authenticate"]) == (401, "close", "bearer")
            assert error_of(body)["code"] == "invalid_api_key"
            # Whoever writes on sees the answer and not a reset, and nothing of it is held.
            await client.send(b"x" * 100_000)
            assert served.server.room.held_bytes == 0
        async with served.client() as client:
            waiting = b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
            await client.send(waiting)
            assert (await client.answer())[0] == 401
        async with served.client() as client:
            await client.send(post(b"abc") + get("/v1/models", f"x-api-key: {KEY}"))
            assert (await client.answer())[0] == 401
            assert await client.at_end()
    assert handled == []
    assert [error.status for error in served.refused] == [401, 401, 401]


async def test_who_reads_on_without_a_key_is_cut_at_the_bodies_limit(door: Door) -> None:
    async with serving(enter=door.enter) as served, served.client() as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await client.answer())[0] == 401
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 1 << 28:
                await client.send(b"x" * 65536)
                sent += 65536
                await asyncio.sleep(0)


async def test_each_request_of_a_connection_shows_its_own_key(door: Door) -> None:
    names: list[tuple[str, Any]] = []

    async def handler(request: HttpRequest, response: HttpResponse) -> None:
        names.append((request.caller.name, request.get("x-api-key")))
        response.send(200, [], b"")

    async with serving(handler, enter=door.enter) as served, served.client() as client:
        upgrade = ("upgrade: h2c", "connection: upgrade", f"x-api-key: {KEY}")
        assert (await client.ask(post(b"a", *upgrade)))[0] == 200
        assert (await client.ask(get("/healthz")))[0] == 200
        assert (await client.ask(get("/v1/models")))[0] == 401
    assert names == [(KEY, None), ("", None)]


# Which door


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "api_keys_file"),
        ({"host": ""}, "--auth none"),
        ({"host": "10.1.2.3"}, "host '10.1.2.3'"),
        ({"host": "router.internal"}, "router.internal"),
        ({"auth": "keys"}, "api_keys_file"),
        ({"auth": "none", "api_keys_file": "/tmp/x"}, "auth is none"),
        ({"api_keys_file": "/nowhere/keys.json"}, "/nowhere/keys.json"),
    ],
)
def test_no_door_at_all(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ServiceFailedError, match=said):
        make_door(msgspec.structs.replace(RouterSettings(), **settings), lambda why: None)


@pytest.mark.parametrize(
    "settings",
    [{}, {"host": "::1"}, {"host": "localhost"}, {"host": "127.3.2.1"}, {"host": "0.0.0.0", "auth": "none"}],
)
def test_an_open_door(settings: dict[str, str]) -> None:
    door = make_door(msgspec.structs.replace(RouterSettings(), **settings), lambda why: None)
    assert isinstance(door, OpenDoor)


@pytest.mark.parametrize("settings", [{}, {"auth": "keys"}, {"host": "0.0.0.0"}])
def test_a_door_with_keys(settings: dict[str, str], tmp_path: Path) -> None:
    path = str(write(tmp_path / "keys.json", entry(KEY)))
    door = make_door(
        msgspec.structs.replace(RouterSettings(api_keys_file=path), **settings), lambda why: None
    )
    assert (door.num_keys, door.stale) == (1, False)
