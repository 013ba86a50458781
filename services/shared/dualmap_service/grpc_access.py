"""gRPC between services: plain, or mutual TLS, where both ends show a certificate of one CA.

Certificates are read again when their files change: a worker's server at its next handshake, clients when they
connect again. A server's name must be the host of its address, unless `server_name` is what all certificates say.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from dualmap_service.access import AccessSettings
from dualmap_service.credentials import PemFiles, Renewed

Options = Sequence[tuple[str, Any]]


class GrpcAccess(Protocol):
    """How this process speaks gRPC."""

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Let a server listen; returns the port. RuntimeError when it cannot."""

    def channel(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """A channel to a server."""

    def context(self) -> ssl.SSLContext | None:
        """For a connection that is framed by hand; None for no TLS."""

    def name_of(self, host: str) -> str | None:
        """The name that a server's certificate must have; None for no TLS."""


class PlainGrpc:
    """In the clear: for a trusted network."""

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Let a server listen."""
        return server.add_insecure_port(address)

    def channel(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """A channel to a server."""
        return grpc.aio.insecure_channel(address, options=options)

    def context(self) -> None:
        """No TLS."""

    def name_of(self, host: str) -> None:
        """No TLS."""


class MutualTls:
    """Both ends show a certificate."""

    def __init__(self, files: PemFiles, server_name: str) -> None:
        self._files = files
        self._server_name = server_name
        self._contexts: Renewed[ssl.SSLContext] | None = None

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Let a server listen: who has no certificate of the CA does not get past the handshake."""
        served = Renewed(self._files, self._configuration, "grpc server")
        credentials = grpc.dynamic_ssl_server_credentials(
            served.latest,
            # At each handshake, on a thread of grpcio's.
            served.renew,  # type: ignore[arg-type]  # the stub does not know that None leaves all as it is
            require_client_authentication=True,
        )
        return server.add_secure_port(address, credentials)

    def channel(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """A channel to a server, with the certificates of now."""
        credentials = grpc.ssl_channel_credentials(*self._read())
        if self._server_name:
            options = (*options, ("grpc.ssl_target_name_override", self._server_name))
        return grpc.aio.secure_channel(address, credentials, options=options)

    def context(self) -> ssl.SSLContext:
        """For a connection that is framed by hand, with the certificates of now."""
        if self._contexts is None:
            self._contexts = Renewed(self._files, self._client_context, "grpc client")
        self._contexts.renew()
        return self._contexts.latest

    def name_of(self, host: str) -> str:
        """The name that a server's certificate must have."""
        return self._server_name or host

    def _read(self) -> tuple[bytes, bytes, bytes]:
        files = self._files
        ca, key, cert = (Path(path).read_bytes() for path in (files.ca_file, files.key_file, files.cert_file))
        return ca, key, cert

    def _client_context(self) -> ssl.SSLContext:
        context = self._files.client_context()
        context.set_alpn_protocols(["h2"])
        return context

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        self._files.server_context()  # grpcio would take a certificate and another's key
        ca, key, cert = self._read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)


def grpc_access(settings: AccessSettings) -> GrpcAccess:
    """As settings say."""
    files = settings.grpc_pem()
    return PlainGrpc() if files == PemFiles() else MutualTls(files, settings.grpc_server_name)
