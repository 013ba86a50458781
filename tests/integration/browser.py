"""The live page in a real browser, for the tests that look at it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.page.chromium import Tab, chromium
from dualmap_cli.stack import Stack

TAB, ENTER, ESCAPE, SPACE, RIGHT, DOWN, HOME = (
    ("Tab", 9),
    ("Enter", 13, "\r"),
    ("Escape", 27),
    (" ", 32, " "),
    ("ArrowRight", 39),
    ("ArrowDown", 40),
    ("Home", 36),
)
ROW = "[...document.querySelectorAll('#requests tbody button')]"


@asynccontextmanager
async def page_of(stack: Stack) -> AsyncIterator[Tab]:
    """The first router's page, shown; the browser must not have complained of anything."""
    async with chromium() as tab:
        await tab.look(1440, 1000)
        await tab.open(f"{stack.router_urls[0]}/")
        await tab.until("document.querySelector('#main')?.hidden === false")
        yield tab
        assert tab.complaints == []


async def focused(tab: Tab) -> str:
    return str(await tab.eval("(document.activeElement.id || document.activeElement.textContent).trim()"))


async def tab_to(tab: Tab, wanted: str, most: int = 40) -> None:
    """Press Tab until an element of that id or text has the focus, and the focus can be seen."""
    for _ in range(most):
        await tab.press(*TAB)
        if await focused(tab) == wanted:
            assert await tab.eval("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"no way to {wanted!r} by keyboard, but to {await focused(tab)!r}")
