"""Debian's Chromium without a window, driven over the DevTools protocol."""

import asyncio
import base64
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from dualmap_service.child import Child, start_child

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip
_START_S = 30.0


def find_chromium() -> str | None:
    """The browser's path; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One page, and what it complained of."""

    def __init__(self, socket: "_Socket", session: str) -> None:
        self._socket = socket
        self._session = session
        self.complaints: list[str] = []
        """Console errors and warnings, uncaught exceptions, violated policies, failed loads."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A DevTools command on this page."""
        return await self._socket.call(method, params, self._session)

    def event(self, method: str, params: dict[str, Any]) -> None:
        """Something happened on the page."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def open(self, url: str) -> None:
        """Go to an address."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def look(
        self, width: int, height: int, *, dark: bool = False, scale: float = 1.0, mobile: bool = False
    ) -> None:
        """Set the window's size and the preferred colours."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=mobile,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def eval(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        reply = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in reply:
            raise AssertionError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 15.0) -> None:
        """Wait until an expression is true."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        # An element by itself comes back as an empty object.
        while not await self.eval(f"Boolean({expression})"):
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"never true: {expression}; complaints: {self.complaints}")
            await asyncio.sleep(0.05)

    async def press(self, key: str, code: int = 0, text: str = "", shift: bool = False) -> None:
        """Press and release a key."""
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text, modifiers=8 * shift,
            )  # fmt: skip

    async def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y = await self.eval(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    async def point_away(self) -> None:
        """Move the mouse to where nothing is."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)

    async def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, or of the window alone."""
        reply = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(reply["data"]))


class _Socket:
    """The connection to the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.tabs: dict[str, Tab] = {}

    async def call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message if session is None else {**message, "sessionId": session})
        async with asyncio.timeout(30):
            return await future

    async def read(self) -> None:
        """Hand on what comes, for ever."""
        async for message in self._socket:
            said = json.loads(message.data)
            future = self._waiting.pop(said.get("id", 0), None)
            if future is not None and not future.done():
                if "error" in said:
                    future.set_exception(AssertionError(said["error"]["message"]))
                else:
                    future.set_result(said["result"])
            elif said.get("sessionId") in self.tabs:
                self.tabs[said["sessionId"]].event(said["method"], said["params"])


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser with one empty page; it is gone afterwards."""
    path = find_chromium()
    assert path is not None, "chromium is not installed"
    with tempfile.TemporaryDirectory(prefix="dualmap-chromium-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        child = start_child(
            [path, *_FLAGS, f"--user-data-dir={folder}/profile", "about:blank"], "chromium", log
        )
        try:
            async with aiohttp.ClientSession() as http:
                url = await _devtools_url(child)
                async with http.ws_connect(url, max_msg_size=0) as websocket:
                    socket = _Socket(websocket)
                    reader = asyncio.create_task(socket.read())
                    try:
                        target = await socket.call("Target.createTarget", {"url": "about:blank"})
                        attach = {"targetId": target["targetId"], "flatten": True}
                        session = (await socket.call("Target.attachToTarget", attach))["sessionId"]
                        tab = socket.tabs[session] = Tab(socket, session)
                        yield tab
                    finally:
                        reader.cancel()
                        await asyncio.gather(reader, return_exceptions=True)
        finally:
            await child.stop(grace_s=5.0)


async def _devtools_url(child: Child) -> str:
    deadline = asyncio.get_running_loop().time() + _START_S
    while True:
        found = re.search(r"DevTools listening on (ws://\S+)", child.log_tail())
        if found:
            return found.group(1)
        assert asyncio.get_running_loop().time() < deadline, f"chromium does not start:\n{child.log_tail()}"
        await asyncio.sleep(0.05)
