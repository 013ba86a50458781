"""Certificates of one TLS end, read from the PEM files that settings name, and again when they are replaced."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dualmap_service.errors import SettingsError

log = logging.getLogger(__name__)

_Made = TypeVar("_Made")

Label = Callable[[str], str]
"""A setting's name as whoever set it knows it: a variable or a flag."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """An end's own certificate and key, and the CA that the other end's certificate must come from; "" for none."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def client_context(self) -> ssl.SSLContext:
        """For who connects; without a CA of its own, the system's are trusted."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file:
            _load_chain(context, self.cert_file, self.key_file)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For who listens; with a CA, clients must show a certificate of it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_chain(context, self.cert_file, self.key_file)
        if self.ca_file:
            context.load_verify_locations(self.ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def stamps(self) -> tuple[tuple[int, int, int], ...]:
        """Differ once a file was replaced; OSError while one is missing."""
        states = [Path(path).stat() for path in (self.ca_file, self.cert_file, self.key_file) if path]
        return tuple((state.st_mtime_ns, state.st_ino, state.st_size) for state in states)

    def check(self, ca: str, cert: str, key: str) -> None:
        """Raise SettingsError that names the setting whose file is missing, unreadable or no PEM."""
        if bool(self.cert_file) != bool(self.key_file):
            given, missing = (cert, key) if self.cert_file else (key, cert)
            raise SettingsError(f"{given} is set and {missing} is not: a certificate needs its key")
        if self.ca_file:
            text = read_text(self.ca_file, ca)
            try:
                _context().load_verify_locations(cadata=text)
            except (ssl.SSLError, ValueError) as exc:
                raise SettingsError(f"{ca}: {self.ca_file} holds no PEM certificate") from exc
        if self.cert_file:
            read_text(self.cert_file, cert)
            read_text(self.key_file, key)
            try:
                _load_chain(_context(), self.cert_file, self.key_file)
            except ssl.SSLError as exc:
                raise SettingsError(
                    f"{cert}, {key}: {self.cert_file} and {self.key_file} are no PEM certificate and its "
                    f"unencrypted key ({exc.reason or exc})"
                ) from exc


class Renewed(Generic[_Made]):
    """What is made of PEM files, and made anew once they are replaced."""

    def __init__(self, files: PemFiles, make: Callable[[], _Made], use: str) -> None:
        """`use` names it in the log. OSError or ValueError when nothing can be made of the files."""
        self._files = files
        self._make = make
        self._use = use
        self._seen: object = files.stamps()
        self.latest = make()

    def renew(self) -> _Made | None:
        """What was made of files that changed since the last call; None if none did, or if they cannot be used.

        Halfway through a renewal a file is missing, or certificate and key do not match: then `latest` stays, and the
        next change is waited for.
        """
        stamps: object = None
        try:
            stamps = self._files.stamps()
            if stamps == self._seen:
                return None
            self.latest = self._make()
        except (OSError, ValueError) as exc:
            if stamps != self._seen:
                log.warning("tls.certificates_unusable", extra={"use": self._use, "error": str(exc)})
            self._seen = stamps
            return None
        self._seen = stamps
        log.info("tls.certificates_renewed", extra={"use": self._use})
        return self.latest


def read_text(path: str, label: str) -> str:
    """A file's text; SettingsError that names the setting when it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="ignore")
    except OSError as exc:
        raise SettingsError(f"{label}: cannot read {path}: {exc.strerror}") from exc


def _load_chain(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    # Without a password of ours, OpenSSL would ask the terminal for one.
    context.load_cert_chain(cert_file, key_file, password="")


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
