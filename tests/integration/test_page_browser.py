"""The page in a real browser, on the real system under load: no complaint of the browser, and all by keyboard.

Skipped where there is no Chromium: `apt-get install chromium`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bench.page.chromium import Tab, chromium
from dualmap_cli.leftovers import settle
from dualmap_cli.stack import Stack, StackOptions

from ..needs import needs
from ..services.router.keys_file import entry, write
from ..waiting import eventually
from .browser import DOWN, ENTER, ESCAPE, HOME, RIGHT, ROW, SPACE, TAB, focused, page_of, tab_to
from .conftest import chat, post, unique_text
from .guarded import ACME, ADMIN, CHAT, ENTRIES, ask, write_keys
from .load_checks import prompts, under_load

pytestmark = needs("chromium")

HOSTILE = "<img src=x onerror=document.title='pwned'>"


async def test_under_load_it_shows_and_explains(http: aiohttp.ClientSession) -> None:
    async with Stack(StackOptions(routers=1, workers=3, rebalancers=1, time_scale=8.0)) as stack:
        requests = prompts("page", rate_req_s=3.0, count=400, tokens=6000, output_tokens=20)
        async with page_of(stack) as tab, under_load(stack, (requests, True)):
            await tab.until("document.querySelectorAll('#instances tbody tr').length === 3")
            await tab.until("document.querySelectorAll('#rings .arcs path').length === 6")
            await tab.until(f"{ROW}.length > 5")
            await tab.until("document.querySelector('#figures .ttft .value').textContent.endsWith('s')")
            await tab.until("document.querySelector('#prefixes tbody tr')")

            # 1. Pointing at a prefix shows its candidates on the rings.
            await tab.eval("document.querySelector('#prefixes button').focus()")
            await tab.until("document.querySelectorAll('#rings path.on').length === 2")
            named = await tab.eval(
                "[...document.querySelectorAll('#rings text')].map(e => e.textContent).join(' ')"
            )
            assert "outer: worker-" in named and "inner: worker-" in named

            # 2. A click explains a request, in words and numbers.
            await tab.click("#requests tbody button")
            await tab.until("document.querySelector('#detail').open")
            told = str(await tab.eval("document.querySelector('#detail-body').textContent"))
            assert "Why worker-" in told and "What happened then" in told
            # One of each decision: a request that moved has several.
            chosen = await tab.eval("document.querySelectorAll('.weighed .chosen').length")
            assert chosen == await tab.eval("document.querySelectorAll('.weighed').length") >= 1
            assert "request=" in await tab.eval("location.hash")
            await tab.press(*ESCAPE)
            await tab.until("!document.querySelector('#detail').open && location.hash === ''")
            await tab.point_away()

            # 3. The same of an instance.
            await tab.click("#instances tbody button")
            await tab.until("document.querySelector('#detail-body').textContent.includes('KV cache')")
            await tab.click("#detail-close")
            await tab.until("!document.querySelector('#detail').open")
        # Nobody looks any more: nothing is left of the page.
        assert (await settle(stack.redis_url, stack.options.pool, stack.router_urls)).clean


async def test_all_of_it_by_keyboard(system: Stack, http: aiohttp.ClientSession) -> None:
    # As many as the list shows: nobody has to walk through them all.
    asked = [
        post(
            http, system.router_urls[0], "/v1/chat/completions", chat("hello"), x_request_id=f"keys-{number}"
        )
        for number in range(60)
    ]
    await asyncio.gather(*asked)
    async with page_of(system) as tab:
        await tab.until(f"{ROW}.length === 60")
        await tab.press(*TAB)
        assert await focused(tab) == "Skip to instances"
        # 1. Pause, and go on.
        await tab_to(tab, "pause")
        await tab.press(*SPACE)
        await tab.until("document.querySelector('#live-text').textContent === 'paused'")
        await tab.press(*ENTER)
        await tab.until("document.querySelector('#live-text').textContent === 'live'")
        # 2. Sort by expected wait.
        await tab_to(tab, "Expected wait")
        await tab.press(*ENTER)
        await tab.until("document.querySelector('#instances th.wait').ariaSort === 'descending'")
        # 3. An instance's dialog takes the focus, holds it and gives it back.
        await tab_to(tab, "worker-1")
        await tab.press(*DOWN)
        assert await focused(tab) == "worker-2"
        await tab.press(*HOME)
        assert await focused(tab) == "worker-1"
        await tab.press(*ENTER)
        await tab.until("document.querySelector('#detail').open")
        for _ in range(3):
            await tab.press(*TAB)
            # From its last element on to the browser's own bar, which the page sees as its body.
            assert await tab.eval("document.activeElement.matches('body, #detail *')")
        await tab.press(*ESCAPE)
        await tab.until("!document.querySelector('#detail').open")
        assert await focused(tab) == "worker-1"
        # 4. The filters are one group of radio buttons.
        await tab_to(tab, "filter-all")
        await tab.press(*RIGHT)
        await tab.until("document.querySelector('#filter-flight').checked")
        await tab.until(f"{ROW}.length === 0")
        for _ in range(4):
            await tab.press(*RIGHT)
        await tab.until("document.querySelector('#filter-all').checked")
        # 5. Its rows are one stop, and the next one is behind them.
        await tab_to(tab, "requests-scroll")
        await tab.press(*TAB)
        for row in range(3):
            assert await tab.eval(f"{ROW}.indexOf(document.activeElement)") == row
            await tab.press(*DOWN)
        await tab.press(*TAB)
        assert await tab.eval("!document.activeElement.closest('#requests')")
        # 6. Whatever can be scrolled can be reached, and says what it is.
        for scroller in ("moves-scroll", "prefixes-scroll", "instances-scroll", "requests-scroll"):
            await tab_to(tab, scroller)
            named = f"document.querySelector('#{scroller}').getAttribute('aria-labelledby')"
            assert await tab.eval(f"document.getElementById({named}).textContent.length > 0")
            assert await tab.eval(f"document.querySelector('#{scroller}').role") == "region"
        # 7. A request by its id.
        await tab_to(tab, "find-id")
        await tab.call("Input.insertText", text="keys-1")
        await tab.press(*ENTER)
        await tab.until("document.querySelector('#detail-title').textContent === 'Request keys-1'")


async def test_what_a_client_sends_stays_text(system: Stack, http: aiohttp.ClientSession) -> None:
    url = system.router_urls[0]
    await post(http, url, "/v1/chat/completions", chat(unique_text(3000)), x_request_id=HOSTILE)
    async with page_of(system) as tab:
        await tab.until(f"{ROW}.some(e => e.title.startsWith('<img'))")
        await tab.eval(f"{ROW}.find(e => e.title.startsWith('<img')).click()")
        await tab.until("document.querySelector('#detail').open")
        assert "<img" in await tab.eval("document.querySelector('#detail-title').textContent")
        assert await tab.eval("document.querySelectorAll('img').length") == 0
        assert await tab.eval("document.title") == "DualMap · demo"
        # The policy holds even if the page were careless.
        refused = await tab.eval(
            "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'taken'; } catch (e) { return e.name; } })()"
        )
        assert refused == "TypeError"
        tab.complaints.clear()


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (820, False), (1440, True)])
async def test_nothing_sticks_out(system: Stack, http: aiohttp.ClientSession, width: int, dark: bool) -> None:
    body = chat(unique_text(3000))
    await post(http, system.router_urls[0], "/v1/chat/completions", body, x_request_id="i" * 128)
    async with page_of(system) as tab:
        await tab.look(width, 844, dark=dark)
        await tab.until(f"{ROW}.length > 0")
        assert await tab.eval("document.documentElement.scrollWidth") <= width
        await tab.eval(f"{ROW}[0].click()")
        await tab.until("document.querySelector('#detail').open")
        assert await tab.eval("document.querySelector('#detail').scrollWidth") <= width


async def test_trouble_is_told_and_goes(http: aiohttp.ClientSession) -> None:
    async with Stack(StackOptions(routers=1, workers=2, rebalancers=1, time_scale=4.0)) as stack:
        assert stack.store is not None
        notices = "document.querySelector('#notices').textContent"
        async with page_of(stack) as tab:
            await tab.until(f"{notices} === ''")
            stack.store.pause()
            await tab.until(f"{notices}.includes('Redis cannot be reached')")
            stack.store.resume()
            await tab.until(f"{notices} === ''")
            await stack.children["worker-2"].stop()
            await tab.until(f"{notices}.includes('worker-2 left the pool')")
            await stack.children["rebalancer-1"].stop()
            await tab.until(f"{notices}.includes('No rebalancer reports')")
            assert tab.complaints == []
            # What is shown stays, marked as old, when the router is gone.
            await stack.children["router-1"].kill()
            await tab.until(f"{notices}.includes('connection to the router is lost')")
            assert await tab.eval("document.querySelectorAll('#instances tbody tr').length") == 1
            assert await tab.eval("document.body.classList.contains('old')")
            tab.complaints.clear()


@asynccontextmanager
async def gated(router_url: str, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """A gateway in front of a router that lets `/ui/` pass with a key only."""

    async def passed(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/ui/") and request.headers.get("authorization") != "Bearer right":
            return web.json_response({"error": {"message": "no"}}, status=401)
        async with http.get(router_url + request.path) as answer:
            kept = ("Content-Type", "Content-Security-Policy")
            response = web.StreamResponse(headers={name: answer.headers[name] for name in kept})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        return response

    application = web.Application()
    application.router.add_get("/{path:.*}", passed)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def unlock(tab: Tab, key: str, seen: str) -> None:
    """Type a key into the form, and wait for what follows."""
    await tab.until("document.activeElement?.id === 'key'")
    await tab.eval("document.querySelector('#key').value = ''")
    await tab.call("Input.insertText", text=key)
    await tab.press(*ENTER)
    await tab.until(seen)


REFUSED = "document.querySelector('#unlock-trouble')?.textContent.includes('not accepted')"
SHOWN = "document.querySelector('#main')?.hidden === false"


async def test_it_asks_for_a_key_where_a_gateway_wants_one(
    system: Stack, http: aiohttp.ClientSession
) -> None:
    async with gated(system.router_urls[0], http) as url, chromium() as tab:
        await tab.open(f"{url}/")
        await unlock(tab, "wrong", REFUSED)
        await unlock(tab, "right", SHOWN)
        await tab.until("document.querySelectorAll('#rings .arcs path').length === 4")
        assert all("401" in complaint for complaint in tab.complaints), tab.complaints


async def test_a_router_with_keys_shows_it_to_administrators(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    keys = write_keys(tmp_path / "keys.json")
    options = StackOptions(routers=1, workers=2, rebalancers=1, router_flags={"api_keys_file": keys})
    async with Stack(options) as stack, chromium() as tab:
        await ask(http, stack.router_urls[0], ACME, CHAT, chat("hello"), x_request_id="asked")
        await tab.open(f"{stack.router_urls[0]}/")
        for key in ("no-such-key-1", ACME):
            await unlock(tab, key, REFUSED)
            assert await tab.eval("document.querySelector('#main').hidden")
        # 1. An administrator's opens all of it: the stream, the rings and what explains a request.
        await unlock(tab, ADMIN, SHOWN)
        await tab.until("document.querySelectorAll('#rings .arcs path').length === 4")
        await tab.until("document.querySelectorAll('#instances tbody tr').length === 2")
        await tab.eval(f"{ROW}.find(e => e.title === 'asked').click()")
        await tab.until("document.querySelector('#detail-body').textContent.includes('Why worker-')")
        # 2. It is kept for this tab, in nothing that outlives it, and not in the address.
        await reload(tab)
        await tab.until(SHOWN)
        assert await tab.eval("[document.cookie, localStorage.length, location.href.includes('key-admin')]") == [
            "", 0, False,
        ]  # fmt: skip
        # 3. One that is taken back is asked for anew, with the next connection at the latest.
        write(keys, *(one for one in ENTRIES if one != entry(ADMIN, tenant="ops", admin=True)))
        await eventually(lambda: _is_turned_away(http, stack.router_urls[0]))
        await reload(tab)
        await tab.until(REFUSED)
        assert all("401" in complaint or "403" in complaint for complaint in tab.complaints), tab.complaints


async def reload(tab: Tab) -> None:
    """Load the page anew; returns when it is another."""
    await tab.eval("window.isOld = true")
    await tab.call("Page.reload")

    async def is_new() -> bool:
        with contextlib.suppress(AssertionError):  # between the two there is none
            return bool(await tab.eval("!window.isOld && document.readyState === 'complete'"))
        return False

    await eventually(is_new)


async def _is_turned_away(http: aiohttp.ClientSession, url: str) -> bool:
    async with http.get(f"{url}/ui/rings", headers={"authorization": f"Bearer {ADMIN}"}) as response:
        return response.status == 401


async def test_nobody_looks_nobody_asks(system: Stack, http: aiohttp.ClientSession) -> None:
    """A page in the background lets go of the stream; it comes back with the page."""

    async def watched(times: int) -> bool:
        async with http.get(f"{system.router_urls[0]}/metrics") as response:
            return f"dualmap_page_viewers {times}.0" in await response.text()

    async with page_of(system) as tab:
        assert await watched(1)
        hidden = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}),"
        told = "document.dispatchEvent(new Event('visibilitychange'))"
        await tab.eval(hidden % "true" + told)
        await eventually(lambda: watched(0))
        await tab.eval(hidden % "false" + told)
        await eventually(lambda: watched(1))
        await tab.until("document.querySelector('#live-text').textContent === 'live'")
