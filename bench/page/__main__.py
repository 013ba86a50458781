"""`make screenshots`: the page at rest, under load, in a hotspot, without Redis, with 64 instances, narrow and dark.

Everything in the pictures is real but the engines, which are simulated. `docs` takes those of the documentation.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from PIL import Image

from bench.page.chromium import Tab, chromium, find_chromium
from bench.page.pools import (
    big_pool,
    chat_requests,
    demo_pool,
    loaded,
    many_requests,
    slow_down,
    slow_the_busiest,
)
from dualmap_cli.stack import Stack

DOCS = Path("docs/pictures")
_WIDE = (1440, 1000)
_NARROW = (390, 844)
_SLOW = 10.0


class Camera:
    """Takes pictures of one router's page, wide and narrow, light and dark."""

    def __init__(self, tab: Tab, out: Path) -> None:
        self._tab = tab
        self._out = out

    async def visit(self, url: str) -> None:
        """Open a router's page and wait for its first snapshot."""
        await self._tab.look(*_WIDE)
        await self._tab.open(f"{url}/")
        await self._tab.until("document.querySelector('#main')?.hidden === false")

    async def shoot(self, name: str, *, dark: bool = False, narrow: bool = False, whole: bool = True) -> None:
        """One picture."""
        await self._tab.look(*(_NARROW if narrow else _WIDE), dark=dark, scale=2.0 if narrow else 1.0)
        await asyncio.sleep(1.2)
        path = self._out / f"{name}.png"
        await self._tab.screenshot(path, whole)
        _shrink(path)
        print(f"{path} ({path.stat().st_size // 1024} KB)")

    async def click(self, selector: str) -> None:
        """Press something."""
        await self._tab.eval(f"document.querySelector({selector!r}).click()")

    async def focus(self, selector: str) -> None:
        """Put the focus on something."""
        await self._tab.eval(f"document.querySelector({selector!r}).focus({{preventScroll: true}})")

    async def leave(self) -> None:
        """Close the dialog and let go of what has the focus."""
        await self._tab.eval("document.querySelector('#detail').close()")
        await self._tab.eval("document.activeElement?.blur()")

    async def until(self, expression: str, timeout_s: float = 40.0) -> None:
        """Wait for the page to show something."""
        await self._tab.until(expression, timeout_s)

    def check(self, expected: str = "") -> None:
        """Nothing went wrong in the browser, but for what was broken on purpose."""
        wrong = [text for text in self._tab.complaints if not expected or expected not in text]
        assert not wrong, wrong
        self._tab.complaints.clear()


def _shrink(path: Path) -> None:
    """The same picture in 256 colours, the rare ones too: a third of the bytes."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


async def demo_pictures(camera: Camera, warm_s: float) -> None:
    """The demo's pool: at rest, under load, in a hotspot, without Redis, without its router."""
    async with demo_pool() as stack:
        await camera.visit(stack.router_urls[0])
        await asyncio.sleep(3)
        await camera.shoot("rest")
        async with loaded(stack, chat_requests()):
            await asyncio.sleep(warm_s)
            await camera.shoot("load")
            await camera.shoot("load-dark", dark=True)
            await camera.shoot("load-narrow", narrow=True)
            await camera.focus("#prefixes button")
            await camera.shoot("prefix", whole=False)
            await camera.leave()
            slowed = await slow_the_busiest(stack, _SLOW)
            await camera.until("document.querySelector('#moves tbody tr')")
            await asyncio.sleep(2)
            await camera.shoot("hotspot")
            await camera.shoot("hotspot-narrow", narrow=True)
            await camera.click("#filter-moved")
            await camera.until("document.querySelector('#requests tbody button')")
            await camera.click("#requests tbody button")
            await camera.shoot("moved-request", whole=False)
            await camera.shoot("moved-request-narrow", narrow=True, whole=False)
            await camera.leave()
            await camera.click("#filter-all")
            await slow_down(slowed, 1.0)
            await camera.click("#instances tbody button")
            await camera.shoot("instance", dark=True, whole=False)
            await camera.leave()
            await trouble_pictures(camera, stack)


async def trouble_pictures(camera: Camera, stack: Stack) -> None:
    """Without Redis, and without the router itself."""
    assert stack.store is not None
    camera.check()
    stack.store.pause()
    await camera.until("document.querySelector('.notice.grave')")
    await asyncio.sleep(6)
    await camera.shoot("redis-down")
    stack.store.resume()
    await camera.until("!document.querySelector('.notice.grave')")
    camera.check()
    await stack.children["router-1"].kill()
    await camera.until("document.querySelector('.notice.grave')")
    await camera.shoot("router-lost", whole=False)


async def big_pictures(camera: Camera, warm_s: float) -> None:
    """64 instances."""
    async with big_pool() as stack:
        await camera.visit(stack.router_urls[0])
        async with loaded(stack, many_requests()):
            await slow_down(stack.engine_urls[6], _SLOW * 3)
            await asyncio.sleep(warm_s)
            await camera.shoot("64")
            await camera.shoot("64-dark", dark=True)
            await camera.shoot("64-narrow", narrow=True)
            await camera.focus("#prefixes button")
            await camera.shoot("64-prefix", whole=False)
            camera.check()


async def docs_pictures(camera: Camera, warm_s: float) -> None:
    """The two in the documentation: in real time, which leaves a shared machine's cores some room."""
    async with demo_pool(1.0) as stack, loaded(stack, chat_requests()):
        await camera.visit(stack.router_urls[0])
        await asyncio.sleep(warm_s)
        slowed = await slow_the_busiest(stack, _SLOW)
        await camera.until("document.querySelectorAll('#moves tbody tr').length > 2", 120.0)
        await slow_down(slowed, 1.0)
        await asyncio.sleep(8)
        await camera.shoot("page-light", whole=False)
        await camera.shoot("page-dark", dark=True, whole=False)
        camera.check()


SETS: dict[str, Callable[[Camera, float], Awaitable[None]]] = {
    "demo": demo_pictures,
    "big": big_pictures,
    "docs": docs_pictures,
}


async def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    # argparse would hold a whole default list against the choices.
    parser.add_argument("sets", nargs="*", metavar=f"{{{','.join(SETS)}}}", help="default demo big")
    parser.add_argument("--out", type=Path, default=Path("/tmp/dualmap-page"))
    parser.add_argument("--warm-s", type=float, default=40.0, help="load before the first picture under load")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(SETS):
        parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    if find_chromium() is None:
        parser.exit(1, "needs Chromium: apt-get install chromium\n")
    for name in args.sets or ("demo", "big"):
        out = DOCS if name == "docs" else args.out
        out.mkdir(parents=True, exist_ok=True)
        async with chromium() as tab:
            await SETS[name](Camera(tab, out), args.warm_s)


if __name__ == "__main__":
    asyncio.run(main())
