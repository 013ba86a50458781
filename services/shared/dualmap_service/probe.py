"""`python -m dualmap_service.probe URL`: ask a service whether it is ready, for the health checks of containers.

`http://host:port/path` or `https://...` must answer 200; `grpc://host:port` must call itself SERVING. Exits 0 when it
does; else says why and exits 1. It shows the certificates that the environment gives the service itself. It imports no
more than it needs: a health check runs every other second.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

if TYPE_CHECKING:
    import ssl

_TIMEOUT_S = 1.5


def fault(url: str) -> str | None:
    """Why the service is not ready, or None."""
    parts = urlsplit(url)
    if parts.scheme == "grpc":
        return _grpc_fault(parts.netloc)
    if parts.scheme not in ("http", "https"):
        return f"cannot probe {url!r}: it must start with http://, https:// or grpc://"
    try:
        with urlopen(url, timeout=_TIMEOUT_S, context=_context() if parts.scheme == "https" else None):
            return None
    except (URLError, OSError) as exc:
        return str(exc)


def _context() -> "ssl.SSLContext":
    """Whoever probes asks its own machine, by an address that no certificate need have; what is said is no secret."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if _setting("TLS_CLIENT_CA_FILE", "ROUTER"):
        context.load_cert_chain(_setting("TLS_CERT_FILE", "ROUTER"), _setting("TLS_KEY_FILE", "ROUTER"))
    return context


def _grpc_fault(address: str) -> str | None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    ca, key, cert = (_file(f"GRPC_{name}_FILE", "WORKER") for name in ("CA", "KEY", "CERT"))
    name = _setting("GRPC_SERVER_NAME", "WORKER")
    options = [("grpc.ssl_target_name_override", name)] if name else None
    if ca is None:
        opened = grpc.insecure_channel(address)
    else:
        opened = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options)
    with opened as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as exc:
            return str(exc.code().name if isinstance(exc, grpc.Call) else exc)
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _setting(name: str, service: str) -> str:
    """As the service that is probed reads it."""
    return os.environ.get(f"DUALMAP_{service}_{name}") or os.environ.get(f"DUALMAP_{name}", "")


def _file(name: str, service: str) -> bytes | None:
    path = _setting(name, service)
    return Path(path).read_bytes() if path else None


def main() -> int:
    """The command; returns its exit status."""
    why = fault(sys.argv[1]) if len(sys.argv) == 2 else "give one URL"
    if why is not None:
        print(why, file=sys.stderr)  # noqa: T201 - what a health check says
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
