"""What it takes to reach a pool: its name, its store, and the certificates and keys that its parts show each other."""

from typing import Annotated

import msgspec

from dualmap_service.credentials import Label, PemFiles
from dualmap_service.curve import CurveListener, InTheClear, Listener, load_pair, load_public
from dualmap_service.errors import SettingsError
from dualmap_service.redis_url import RedisUrl, parse_redis_url

RedisUrlText = Annotated[str, msgspec.Meta(pattern=r"^(rediss?(\+(sentinel|cluster))?|unix)://")]


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to reach a pool: every service and every command of an operator is told."""

    redis_url: RedisUrlText = "redis://127.0.0.1:6379/0"
    """Redis or Valkey: redis://, rediss:// (TLS), unix://, redis+sentinel://host,host/MASTER or redis+cluster://host,host,
    with user and password as needed."""
    redis_ca_file: str = ""
    """PEM: the CA of Redis' certificates; the system's when empty."""
    redis_cert_file: str = ""
    """PEM: the certificate that Redis asks its clients for."""
    redis_key_file: str = ""
    """PEM: its key."""
    redis_sentinel_username: str = ""
    """Where the Sentinels themselves ask for a login: user ..."""
    redis_sentinel_password: str = ""
    """... and password."""
    grpc_ca_file: str = ""
    """PEM: the CA of all services' gRPC certificates; with it workers and whoever calls them show each other theirs,
    without it gRPC is in the clear."""
    grpc_cert_file: str = ""
    """PEM: this process's certificate."""
    grpc_key_file: str = ""
    """PEM: its key."""
    grpc_server_name: str = ""
    """The name in the workers' certificates; when empty, each worker's address."""
    curve_key_file: str = ""
    """This process's own CURVE keys for telemetry, a NAME.key_secret of `dualmap curve new`; in the clear when empty.
    Routers do without."""
    curve_workers_key_file: str = ""
    """The workers' public key, a NAME.key: of whoever listens to them."""
    pool: str = "default"
    """The instances that serve one model; part of every Redis key."""

    def listener(self) -> Listener:
        """How this process listens to workers."""
        if not self.curve_workers_key_file:
            return InTheClear()
        return CurveListener(self.curve_key_file, self.curve_workers_key_file)

    def grpc_pem(self) -> PemFiles:
        """The files for mutual TLS between services."""
        return PemFiles(self.grpc_ca_file, self.grpc_cert_file, self.grpc_key_file)

    def redis_pem(self) -> PemFiles:
        """The files for TLS to Redis."""
        return PemFiles(self.redis_ca_file, self.redis_cert_file, self.redis_key_file)

    def redis_place(self) -> RedisUrl:
        """Where Redis is, and how to speak to it; ValueError for a URL without meaning."""
        return parse_redis_url(self.redis_url, self.redis_pem())

    def check(self, label: Label) -> None:
        """Raise SettingsError for an address without meaning or a file that cannot be used."""
        self.redis_pem().check(label("redis_ca_file"), label("redis_cert_file"), label("redis_key_file"))
        self.grpc_pem().check(label("grpc_ca_file"), label("grpc_cert_file"), label("grpc_key_file"))
        if bool(self.grpc_ca_file) != bool(self.grpc_cert_file):
            raise SettingsError(
                f"{label('grpc_ca_file')} and {label('grpc_cert_file')} go together: both ends show a certificate"
            )
        if self.curve_key_file:
            load_pair(self.curve_key_file, label("curve_key_file"))
        if self.curve_workers_key_file:
            load_public(self.curve_workers_key_file, label("curve_workers_key_file"))
            if not self.curve_key_file:
                raise SettingsError(
                    f"{label('curve_workers_key_file')} needs {label('curve_key_file')}, one's own key"
                )
        try:
            place = self.redis_place()
        except ValueError as exc:
            raise SettingsError(f"{label('redis_url')}: {exc}") from exc
        if self.redis_pem() != PemFiles() and not place.encrypted:
            raise SettingsError(f"{label('redis_url')}: certificates are set, but only rediss:// uses them")
