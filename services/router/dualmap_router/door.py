"""The door: lets a request in by its API key, once its head is there and before its body is."""

import ipaddress
import time
from collections.abc import Callable
from typing import Protocol

from dualmap_router.api_keys import KeysError
from dualmap_router.caller import ANYONE, NOBODY, Caller
from dualmap_router.endpoints import is_file
from dualmap_router.errors import ApiError
from dualmap_router.key_watch import KeyWatch
from dualmap_router.settings import RouterSettings
from dualmap_service.lifecycle import ServiceFailedError

Headers = list[tuple[str, str]]

_CREDENTIALS = ("authorization", "x-api-key")
_PROBES = frozenset((b"/healthz", b"/readyz"))
_SAID = {
    "missing": "this service wants an API key: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`",
    "malformed": "the request's credentials are not one API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
    "unknown": "the API key is not one of this service",
    "expired": "the API key has expired",
}


class Door(Protocol):
    """Decides over a request's head."""

    @property
    def num_keys(self) -> int:
        """Keys in force."""

    @property
    def stale(self) -> bool:
        """Whether the file as it is cannot be used."""

    def enter(self, method: bytes, target: bytes, headers: Headers) -> Caller:
        """Who it is; takes credentials that are ours out of the headers. ApiError 401 for who may not come in."""

    async def poll(self) -> None:
        """Follow what the door goes by."""


class OpenDoor:
    """Everybody may come: credentials that a client sends are for the engine."""

    num_keys = 0
    stale = False

    def enter(self, method: bytes, target: bytes, headers: Headers) -> Caller:
        """Anyone."""
        return ANYONE

    async def poll(self) -> None:
        """Nothing to follow."""


class KeyDoor:
    """Who has a key may come."""

    def __init__(
        self, watch: KeyWatch, turned_away: Callable[[str], None], open_metrics: bool = True
    ) -> None:
        """`turned_away` is told why, each time."""
        self._open = _PROBES | {b"/metrics"} if open_metrics else _PROBES
        self._watch = watch
        self._turned_away = turned_away

    @property
    def num_keys(self) -> int:
        """Keys in force."""
        return len(self._watch.keys)

    @property
    def stale(self) -> bool:
        """Whether the file as it is cannot be used."""
        return self._watch.stale

    async def poll(self) -> None:
        """Follow the file."""
        await self._watch.poll()

    def enter(self, method: bytes, target: bytes, headers: Headers) -> Caller:
        """The bearer of the key in the headers, who is not in them any more."""
        shown = [pair for pair in headers if pair[0] in _CREDENTIALS]
        if shown:
            headers[:] = [pair for pair in headers if pair[0] not in _CREDENTIALS]
        path = target.partition(b"?")[0]
        if method in (b"GET", b"HEAD") and (path in self._open or is_file(path.decode("latin-1"))):
            return NOBODY
        if not shown:
            raise self._away("missing")
        texts = {_key_in(name, value) for name, value in shown}
        text = texts.pop()
        # Two that differ: whoever stands before us may have gone by the other.
        if not text or texts:
            raise self._away("malformed")
        key = self._watch.keys.find(text)
        if key is None:
            raise self._away("unknown")
        if time.time() >= key.expires_s:
            raise self._away("expired")
        return key.caller

    def _away(self, why: str) -> ApiError:
        self._turned_away(why)
        bearer = "Bearer" if why == "missing" else 'Bearer error="invalid_token"'
        return ApiError(401, _SAID[why], code="invalid_api_key", headers=[("www-authenticate", bearer)])


def _key_in(name: str, value: str) -> str:
    """The key in a header; empty if that is not what it holds."""
    if name == "x-api-key":
        return value.strip()
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def make_door(settings: RouterSettings, turned_away: Callable[[str], None]) -> Door:
    """The door that the settings ask for; ServiceFailedError names the one that is wrong."""
    path, auth = settings.api_keys_file, settings.auth
    if auth == "none" and path:
        raise ServiceFailedError("auth is none and api_keys_file is given: nobody would be asked for a key")
    if auth == "keys" and not path:
        raise ServiceFailedError(
            "auth is keys and there is no api_keys_file: `dualmap keys new --file` makes one"
        )
    if path:
        try:
            return KeyDoor(KeyWatch(path), turned_away, settings.open_metrics)
        except KeysError as exc:
            raise ServiceFailedError(f"api_keys_file: {path} cannot be used: {exc}") from exc
    if auth == "auto" and not _is_loopback(settings.host):
        raise ServiceFailedError(
            f"host {settings.host!r} lets others in than this machine, and nobody is asked for a key: give an"
            " api_keys_file (`dualmap keys new --file` makes one), or say that this is meant: --auth none"
        )
    return OpenDoor()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
