"""CURVE on ZeroMQ telemetry: encryption, and keys that say who may publish and who may listen.

Key files are pyzmq's: NAME.key holds a public key, NAME.key_secret the pair; `dualmap curve new NAME` makes them.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.auth import load_certificate, load_certificates
from zmq.auth.asyncio import AsyncioAuthenticator

from dualmap_service.errors import SettingsError

log = logging.getLogger(__name__)

_DOMAIN = b"dualmap"
_KEY_BYTES = 40
_REFUSED_LOG_S = 10.0


class Listener(Protocol):
    """How a subscriber shows who it is."""

    def introduce(self, socket: "zmq.Socket[Any]") -> None:
        """Before it connects."""


class Publishing(Protocol):
    """How a publisher tells who may listen."""

    def guard(self, context: "zmq.Context[Any]", socket: "zmq.Socket[Any]") -> Callable[[], None]:
        """Before it binds; returns what ends the guarding."""


class InTheClear:
    """No keys: for a trusted network."""

    def introduce(self, socket: "zmq.Socket[Any]") -> None:
        """Nobody asks."""

    def guard(self, context: "zmq.Context[Any]", socket: "zmq.Socket[Any]") -> Callable[[], None]:
        """Everybody may listen."""
        return lambda: None


class CurveListener:
    """Shows its own key, and listens to nobody but the holder of the workers'."""

    def __init__(self, key_file: str, workers_key_file: str) -> None:
        self._public, self._secret = load_pair(key_file, "curve_key_file")
        self._workers = load_public(workers_key_file, "curve_workers_key_file")

    def introduce(self, socket: "zmq.Socket[Any]") -> None:
        """Before it connects."""
        socket.set(zmq.CURVE_PUBLICKEY, self._public)
        socket.set(zmq.CURVE_SECRETKEY, self._secret)
        socket.set(zmq.CURVE_SERVERKEY, self._workers)


class CurvePublishing:
    """Lets in whose public key lies in a folder, looked at anew for each who comes."""

    def __init__(self, key_file: str, clients_dir: str) -> None:
        self._public, self._secret = load_pair(key_file, "curve_key_file")
        self._clients_dir = clients_dir
        self._logged_s = -math.inf

    def guard(self, context: "zmq.Context[Any]", socket: "zmq.Socket[Any]") -> Callable[[], None]:
        """Before it binds, on a running event loop."""
        authenticator = AsyncioAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(_DOMAIN.decode(), self)
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_PUBLICKEY, self._public)
        socket.set(zmq.CURVE_SECRETKEY, self._secret)
        # With a domain, nobody comes in while there is nobody to ask.
        socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
        return authenticator.stop

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the holder of a public key may listen; pyzmq asks at each handshake."""
        try:
            known = key in load_certificates(self._clients_dir)
        except (OSError, ValueError) as exc:
            log.warning("telemetry.keys_unusable", extra={"error": str(exc)})
            return False
        now_s = time.monotonic()
        if not known and now_s - self._logged_s > _REFUSED_LOG_S:
            self._logged_s = now_s
            log.warning("telemetry.refused", extra={"key": key.decode(errors="replace")})
        return known


def load_pair(path: str, label: str) -> tuple[bytes, bytes]:
    """(public, secret) of a key file; SettingsError that names the setting."""
    public, secret = _load(path, label)
    if secret is None or len(secret) != _KEY_BYTES:
        raise SettingsError(f"{label}: {path} holds no secret key: it takes a NAME.key_secret")
    return public, secret


def load_public(path: str, label: str) -> bytes:
    """The public key in a key file; SettingsError that names the setting."""
    return _load(path, label)[0]


def check_clients(folder: str, label: str) -> None:
    """SettingsError unless a folder has a key of somebody who may listen."""
    if not any(Path(folder).glob("*.key")):
        raise SettingsError(f"{label}: no NAME.key in {folder}: nobody could listen")
    for path in Path(folder).glob("*.key"):
        load_public(str(path), label)


def _load(path: str, label: str) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except OSError as exc:
        raise SettingsError(f"{label}: cannot read {path}: {exc.strerror or 'no such file'}") from exc
    except ValueError as exc:
        raise SettingsError(f"{label}: {path} holds no CURVE key") from exc
    if len(public) != _KEY_BYTES:
        raise SettingsError(f"{label}: {path} holds no CURVE key")
    return public, secret
