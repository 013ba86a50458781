"""TLS for clients: the certificate of now at each handshake, so that a renewed one needs no restart."""

import ssl
from typing import Protocol

from dualmap_service.credentials import PemFiles, Renewed


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
        self._contexts = Renewed(files, files.server_context, "http")
        self.context = self._contexts.latest
        # Called for every client, whether it names a server or not; what it sets holds from this handshake on.
        self.context.sni_callback = self._take_current

    async def renew(self) -> None:
        """Read files that have changed; what cannot be used leaves all as it is."""
        self._contexts.renew()

    def _take_current(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        handshake.context = self._contexts.latest
