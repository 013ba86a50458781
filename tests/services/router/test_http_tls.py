"""HTTPS: handshakes with the certificates of now, on uvloop as the services run; nobody hangs it."""

import asyncio
import shutil
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from dualmap_router.http_message import HttpRequest, HttpResponse
from dualmap_router.http_server import HttpLimits
from dualmap_router.http_tls import CertifiedHttp
from dualmap_service.credentials import PemFiles

from ...certificates import Authority, Pem
from ...waiting import eventually
from .serving import Client, Served, chunked, get, post, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pem")


@pytest.fixture
def pem(authority: Authority) -> Pem:
    return authority.issue("router")


def on_uvloop(body: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(asyncio.wait_for(body(), 60.0))


def test_requests_and_answers_of_every_size(authority: Authority, pem: Pem) -> None:
    tls = CertifiedHttp(PemFiles("", pem.cert_file, pem.key_file))

    async def body() -> None:
        async with serving(tls=tls.context) as served, served.client(authority.client_context()) as client:
            for text in (b"", b"x", b"y" * 900_000):
                assert (await client.ask(post(text)))[2] == b"POST /x " + text
            assert (await client.ask(chunked(b"a" * 70_000, b"b")))[0] == 200
            # A client that has been answered and refused reads to the end.
            status, _, _ = await client.ask(post(b"", "content-length: 3", "transfer-encoding: chunked"))
            assert status == 400
            assert await client.at_end()

    on_uvloop(body)


def test_a_stream_to_a_client_that_reads_slowly(authority: Authority, pem: Pem) -> None:
    tls = CertifiedHttp(PemFiles("", pem.cert_file, pem.key_file))
    num_parts, waited = 200, 0

    async def stream(request: HttpRequest, response: HttpResponse) -> None:
        nonlocal waited
        response.start(200, [("content-type", "text/plain")])
        for number in range(num_parts):
            response.write(bytes([number]) * 50_000)
            if response.full:
                waited += 1
                await response.room()
        response.end()

    async def body() -> None:
        async with (
            serving(stream, tls=tls.context) as served,
            served.client(authority.client_context()) as client,
        ):
            await client.send(get())
            await eventually(lambda: waited)
            _, _, received = await client.answer()
        assert received == b"".join(bytes([number]) * 50_000 for number in range(num_parts))

    on_uvloop(body)


def test_who_is_still_sending_when_it_is_refused_reads_why(authority: Authority, pem: Pem) -> None:
    tls = CertifiedHttp(PemFiles("", pem.cert_file, pem.key_file))

    async def body() -> None:
        async with serving(tls=tls.context) as served:
            for _ in range(5):
                async with served.client(authority.client_context()) as client:
                    sending = asyncio.ensure_future(client.send(post(b"x" * 8_000_000)))
                    assert (await client.answer())[0] == 413
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

    on_uvloop(body)


async def _refused(served: Served, context: ssl.SSLContext) -> bool:
    """Whether a client gets no answer; TLS 1.3 tells it of its certificate behind the handshake."""
    try:
        async with served.client(context) as client:
            await client.ask(get())
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


def test_who_is_not_trusted(authority: Authority, pem: Pem, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    tls = CertifiedHttp(PemFiles(authority.ca_file, pem.cert_file, pem.key_file))

    async def body() -> None:
        async with serving(tls=tls.context) as served:
            good = authority.issue("client", "somebody")
            assert not await _refused(served, authority.client_context(good))
            for context in (
                stranger.client_context(good),
                authority.client_context(),
                authority.client_context(stranger.issue("client", "somebody")),
                authority.client_context(authority.issue("old", "somebody", expired=True)),
            ):
                assert await _refused(served, context)
            assert not await _refused(served, authority.client_context(good))

    on_uvloop(body)


def test_renewed_certificates(authority: Authority, pem: Pem, tmp_path: Path) -> None:
    tls = CertifiedHttp(PemFiles(authority.ca_file, pem.cert_file, pem.key_file))
    before = authority.client_context(authority.issue("client", "somebody"))
    successor = Authority(tmp_path / "successor")
    after = successor.client_context(successor.issue("client", "somebody"))
    renewed = successor.issue("router")

    async def body() -> None:
        async with serving(tls=tls.context) as served, served.client(before) as client:
            assert (await client.ask(get()))[0] == 200
            shutil.copy(renewed.key_file, pem.key_file)
            await tls.renew()
            # Half of it is there: as before.
            assert not await _refused(served, before)
            shutil.copy(renewed.cert_file, pem.cert_file)
            shutil.copy(successor.ca_file, authority.ca_file)
            await tls.renew()
            assert not await _refused(served, after)
            assert await _refused(served, before)
            # A connection that is open goes on.
            assert (await client.ask(get()))[0] == 200

    on_uvloop(body)


def test_what_is_no_tls_ends_and_what_says_nothing_holds_nobody_up(
    authority: Authority, pem: Pem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualmap_router.http_server._HANDSHAKE_S", 0.5)
    tls = CertifiedHttp(PemFiles("", pem.cert_file, pem.key_file))

    async def body() -> None:
        async with serving(tls=tls.context) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            plain = Client(reader, writer)
            await plain.send(get())
            assert await _ends(reader)
            writer.close()
            silent = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(20)]
            assert not await _refused(served, authority.client_context())
            for reader, writer in silent:
                assert await _ends(reader)
                writer.close()

    on_uvloop(body)


async def _ends(reader: asyncio.StreamReader) -> bool:
    """Whether the server hangs up; it may send an alert first."""
    try:
        await asyncio.wait_for(reader.read(), 10.0)
    except ConnectionError:
        return True
    return True


def test_a_client_that_vanishes_behind_tls(authority: Authority, pem: Pem) -> None:
    limits = HttpLimits(max_body_bytes=1 << 20, max_held_bytes=4 << 20)
    tls = CertifiedHttp(PemFiles("", pem.cert_file, pem.key_file))
    gone = asyncio.Event()

    async def never(request: HttpRequest, response: HttpResponse) -> None:
        response.on_gone = gone.set
        await gone.wait()

    async def body() -> None:
        async with serving(never, limits, tls=tls.context) as served:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", served.port, ssl=authority.client_context()
            )
            writer.write(get())
            await eventually(
                lambda: served.server.connections and any(c._current for c in served.server.connections)
            )
            writer.transport.abort()
            await asyncio.wait_for(gone.wait(), 5.0)

    on_uvloop(body)
