"""The operator's pages: readable, bounded, and gone after the end."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dualmap_rebalancer.pages import Pages
from dualmap_service.lifecycle import ServiceFailedError

from .conftest import get


class Site:
    def __init__(self) -> None:
        self.ready = True
        self.pages = Pages(lambda: b"a 1\n", lambda: self.ready)
        self.address = ""

    async def raw(self, request: bytes) -> bytes:
        host, _, port = self.address.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    site.address = await site.pages.start("127.0.0.1", 0)
    yield site
    await site.pages.close()


async def test_pages(site: Site) -> None:
    assert await get(site.address, "/metrics") == (200, "a 1\n")
    assert await get(site.address, "/metrics?x=1") == (200, "a 1\n")
    assert await get(site.address, "/healthz") == (200, "alive\n")
    assert await get(site.address, "/readyz") == (200, "ready\n")
    site.ready = False
    assert (await get(site.address, "/readyz"))[0] == 503
    assert (await get(site.address, "/etc"))[0] == 404


async def test_head_has_no_body_and_others_are_refused(site: Site) -> None:
    assert (await site.raw(b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
    assert b" 405 " in await site.raw(b"POST /metrics HTTP/1.1\r\n\r\n")
    assert b" 405 " in await site.raw(b"\r\n\r\n")


async def test_what_is_not_http_is_hung_up_on(site: Site) -> None:
    assert await site.raw(b"x" * 20_000) == b""
    assert (await get(site.address, "/healthz"))[0] == 200


async def test_a_taken_port_is_named(site: Site) -> None:
    port = int(site.address.rpartition(":")[2])
    with pytest.raises(ServiceFailedError, match=str(port)):
        await Pages(lambda: b"", lambda: True).start("127.0.0.1", port)


async def test_closing_does_not_wait_for_idle_clients(site: Site) -> None:
    host, _, port = site.address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await get(site.address, "/healthz")
    async with asyncio.timeout(1.0):
        await site.pages.close()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
