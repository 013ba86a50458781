"""The page over HTTP: its files, and its data as a snapshot, as a stream of snapshots, as rings, as one request.

The files (`/` and `/page/...`) are the same for everybody and hold no data: who opens them shows no key yet. All data
is under `/ui/`, for administrators.
"""

import asyncio
from collections.abc import Callable
from importlib import resources
from typing import Protocol
from urllib.parse import unquote

import msgspec

from dualmap_router.endpoints import FILES_PREFIX, is_file
from dualmap_router.errors import ApiError, ClientGoneError, not_found, overloaded
from dualmap_router.http_message import JSON, HttpRequest, HttpResponse
from dualmap_router.ui.snapshot import Snapshots

DATA_PREFIX = "/ui/"
_PERIOD_S = 1.0
_MAX_VIEWERS = 64

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in nobody's frame; and no string becomes markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_GUARDS = [
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
]
_NO_STORE = ("cache-control", "no-store")


class Pages(Protocol):
    """What is shown to people."""

    def owns(self, path: str) -> bool:
        """Whether a path belongs to the page."""

    async def answer(self, request: HttpRequest, response: HttpResponse) -> None:
        """Answer a request for one of them; ApiError when there is no such thing."""


class NoPages:
    """The page, switched off: its paths mean nothing."""

    def owns(self, path: str) -> bool:
        """Nothing is."""
        return False

    async def answer(self, request: HttpRequest, response: HttpResponse) -> None:
        """Nobody asks."""


class LivePages:
    """The page and its data."""

    def __init__(self, snapshots: Snapshots, draining: Callable[[], bool]) -> None:
        self._snapshots = snapshots
        self._draining = draining
        self._files = _read_files()
        self.viewers = 0

    def owns(self, path: str) -> bool:
        """Whether a path belongs to the page."""
        return is_file(path) or path.startswith(DATA_PREFIX)

    async def answer(self, request: HttpRequest, response: HttpResponse) -> None:
        """Answer a request for one of them; ApiError when there is no such thing."""
        if request.method not in ("GET", "HEAD"):
            raise ApiError(405, f"{request.path} takes GET", code="method_not_allowed")
        path = request.path
        if not path.startswith(DATA_PREFIX):
            self._file(path, response)
            return
        request.caller.check_admin()
        if path == "/ui/snapshot":
            _send_json(response, await self._snapshots.current())
        elif path == "/ui/rings":
            _send_json(response, msgspec.json.encode(self._snapshots.rings()))
        elif path == "/ui/stream":
            await self._stream(response)
        elif path.startswith("/ui/requests/"):
            self._request(request, response)
        else:
            raise not_found(path)

    def _file(self, path: str, response: HttpResponse) -> None:
        file = self._files.get(path)
        if file is None:
            raise not_found(path)
        content_type, content = file
        headers = [("content-type", content_type), ("cache-control", "no-cache"), *_GUARDS]
        response.send(200, headers, content)

    def _request(self, request: HttpRequest, response: HttpResponse) -> None:
        # Of the target: an id may have a slash or a per cent sign in it.
        request_id = unquote(request.target.partition("?")[0].removeprefix("/ui/requests/"))
        found = self._snapshots.find(request_id)
        if found is None:
            raise ApiError(
                404, "this router does not know that request, or no longer", code="request_not_found"
            )
        _send_json(response, msgspec.json.encode(found))

    async def _stream(self, response: HttpResponse) -> None:
        """Snapshots as server-sent events until the viewer goes away or this router drains."""
        if self.viewers >= _MAX_VIEWERS:
            raise overloaded("too many people look at this page", retry_after_s=5.0)
        self.viewers += 1
        try:
            response.start(200, [("content-type", "text/event-stream"), _NO_STORE, *_GUARDS])
            while not self._draining():
                # A viewer that reads slowly misses some instead of making them wait here.
                if not response.full:
                    response.write(b"data: " + await self._snapshots.current() + b"\n\n")
                await asyncio.sleep(_PERIOD_S)
            response.end()
        except ClientGoneError:
            return  # how looking at a page ends
        finally:
            self.viewers -= 1


def _send_json(response: HttpResponse, body: bytes) -> None:
    response.send(200, [JSON, _NO_STORE, *_GUARDS], body)


def _read_files() -> dict[str, tuple[str, bytes]]:
    """Path -> content type and content."""
    files = {}
    for file in resources.files("dualmap_router.ui").joinpath("static").iterdir():
        content_type = _TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            path = "/" if file.name == "index.html" else FILES_PREFIX + file.name
            files[path] = (content_type, file.read_bytes())
    return files
