"""The page of a pool of 64 instances in a real browser: all of them, and on a telephone nothing that is cut away."""

import asyncio

import pytest

from bench.page.chromium import Tab
from bench.page.pools import big_pool, loaded, many_requests, slow_down

from ..needs import needs
from .browser import page_of

pytestmark = [
    needs("chromium"),
    pytest.mark.timeout(240),
]

INSTANCES = 64
CUT = """
document.querySelector('#instances td.state span:last-child').textContent = 'unreachable',
[...document.querySelectorAll('table')].filter(t => t.offsetWidth).flatMap(t => {
  const box = t.parentElement.getBoundingClientRect();
  return [...t.rows].flatMap(row => [...row.cells])
    .filter(cell => cell.offsetWidth && cell.getBoundingClientRect().right > box.right + 1)
    .map(cell => `${t.id}: ${cell.textContent} ends at ${cell.getBoundingClientRect().right} of ${box.right}`);
})
"""
"""Cells that end beyond what is seen of their table without scrolling sideways; one has its column's longest word."""


async def test_64_instances() -> None:
    async with big_pool(INSTANCES) as stack, page_of(stack) as tab:
        await tab.until(f"document.querySelectorAll('#instances tbody tr').length === {INSTANCES}")
        async with loaded(stack, many_requests()):
            await slow_down(stack.engine_urls[6], 30.0)
            await tab.until("document.querySelectorAll('#moves tbody tr').length > 3", 90.0)
            await tab.until("document.querySelectorAll('#requests tbody tr').length === 60", 60.0)
            await tab.until("document.querySelectorAll('#prefixes tbody tr').length > 5", 60.0)
            await _looks(tab)
            await slow_down(stack.engine_urls[6], 1.0)


async def _looks(tab: Tab) -> None:
    # 1. Every instance has a row, by number, and a column in the strip, which says in words who waits longest.
    names = await tab.eval("[...document.querySelectorAll('#instances tbody th')].map(e => e.textContent)")
    assert names == [f"worker-{number}" for number in range(1, INSTANCES + 1)]
    under = await tab.eval("document.querySelectorAll('#strip rect.under').length")
    assert under == await tab.eval("document.querySelectorAll('#strip rect:not(.under)').length") == INSTANCES
    await tab.until(
        "/longest is .+ at worker-[0-9]+$/.test(document.querySelector('#strip svg').getAttribute('aria-label'))"
    )
    widths = "[...document.querySelectorAll('#strip rect.under')].map(e => e.getBoundingClientRect().width)"
    # 2. Wide or narrow: columns of the strip that can be told apart, no cell cut away, a page as wide as its window.
    for width, least in ((1440, 6.0), (820, 4.0), (390, 3.0)):
        await tab.look(width, 844)
        await tab.eval("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert min(await tab.eval(widths)) >= least
        assert (width, await tab.eval(CUT)) == (width, [])
        assert await tab.eval("document.documentElement.scrollWidth") <= width
    # 3. What is said under the list stands off its last row.
    await tab.until("document.querySelector('#requests-note').textContent.includes('newest 60')")
    gap = await tab.eval(
        "document.querySelector('#requests-note').getBoundingClientRect().top"
        " - document.querySelector('#requests-scroll').getBoundingClientRect().bottom"
    )
    assert gap >= 4
    # 4. The number of splits says what it is.
    await tab.until(
        "/^[0-9]+ split into longer ones/.test(document.querySelector('#rings-note').textContent)"
    )
    await asyncio.sleep(0.5)
