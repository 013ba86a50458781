"""TLS for clients: the certificate of now at each handshake, so that a renewed one needs no restart."""

import logging
import ssl
from typing import Protocol

from dualmap_service.credentials import PemFiles

log = logging.getLogger(__name__)


class HttpTls(Protocol):
    """How clients are listened to."""

    @property
    def scheme(self) -> str:
        """Of this router's URL."""

    @property
    def context(self) -> ssl.SSLContext | None:
        """To listen with."""

    async def renew(self) -> None:
        """Read files that have changed."""


class PlainHttp:
    """In the clear: for a trusted network, or behind a proxy that ends TLS."""

    scheme = "http"
    context = None

    async def renew(self) -> None:
        """Nothing is read."""


class CertifiedHttp:
    """With a certificate; with a CA too, clients must show one of that."""

    scheme = "https"

    def __init__(self, files: PemFiles) -> None:
        self._files = files
        self._stamps: object = files.stamps()
        self.context = self._current = files.server_context()
        # Called for every client, whether it names a server or not; what it sets holds from this handshake on.
        self.context.sni_callback = self._take_current

    async def renew(self) -> None:
        """Read files that have changed; what cannot be used leaves all as it is."""
        try:
            stamps = self._files.stamps()
            if stamps == self._stamps:
                return
            self._current = self._files.server_context()
        except OSError as exc:
            # Halfway through a renewal certificate and key do not match.
            log.warning("http.certificate_unusable", extra={"error": str(exc)})
            return
        self._stamps = stamps
        log.info("http.certificate_renewed")

    def _take_current(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        handshake.context = self._current
