"""Settings: one frozen object per service, built once from defaults, the environment and flags.

A field `port` of the router's settings is read from `DUALMAP_ROUTER_PORT`; the fields of `SharedSettings`
also from `DUALMAP_PORT`-like names without the service. An unknown name or a bad value stops the start and
names itself, with the nearest known name.

Kubernetes puts the address of each Service into every container: beside one named `dualmap-router` stand
`DUALMAP_ROUTER_SERVICE_HOST`, `DUALMAP_ROUTER_PORT=tcp://10.0.0.1:8000` and the like. They are no settings.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from dualmap_service.credentials import Label, PemFiles
from dualmap_service.curve import CurveListener, InTheClear, Listener, load_pair, load_public
from dualmap_service.errors import SettingsError
from dualmap_service.redis_url import RedisUrl, parse_redis_url

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(gt=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
RedisUrlText = Annotated[str, msgspec.Meta(pattern=r"^(rediss?(\+(sentinel|cluster))?|unix)://")]
CollectorUrl = Annotated[str, msgspec.Meta(pattern="^$|^https?://")]

SERVICES = ("router", "worker", "rebalancer")
_KUBERNETES_NAME = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://.*")
_SECRETS = ("secret", "password", "token", "api_key")


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


class SharedSettings(AccessSettings, frozen=True, kw_only=True):
    """What every service is told."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    """json, or text for a terminal."""
    trace_endpoint: CollectorUrl = ""
    """A collector's OTLP/gRPC URL, as http://jaeger:4317; no tracing when empty."""
    trace_share: Share = 0.1
    """Of the requests whose caller does not say; failures and missed objectives leave a span anyway."""


T = TypeVar("T", bound=AccessSettings)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings, and for each field where its value came from."""

    settings: T
    origins: Mapping[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every field; secrets and passwords in URLs are masked."""
        rows = []
        for field in msgspec.structs.fields(type(self.settings)):
            value = _masked(field.name, getattr(self.settings, field.name))
            rows.append((field.name, value, self.origins[field.name]))
        return rows


def load_settings(
    kind: type[T], service: str, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Loaded[T]:
    """Build a service's settings; later sources win: default, shared variable, service variable, flag.

    Raises SettingsError naming the setting that is unknown or wrong.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    shared = {field.name for field in msgspec.structs.fields(SharedSettings)}
    environ = {name: value for name, value in environ.items() if not _from_kubernetes(name, value)}
    _reject_unknown(environ, service, set(fields), shared)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(fields, "default")
    for name, field in fields.items():
        names = [f"DUALMAP_{service}_{name}".upper()]
        if name in shared:
            names.insert(0, f"DUALMAP_{name}".upper())
        for variable in names:
            if variable in environ:
                values[name] = _convert(environ[variable], field.type, variable)
                origins[name] = variable
        flag = (flags or {}).get(name)
        if flag is not None:
            label = "--" + name.replace("_", "-")
            values[name] = _convert(flag, field.type, label)
            origins[name] = label
    unknown = set(flags or {}) - set(fields)
    if unknown:
        raise SettingsError(f"unknown setting {sorted(unknown)[0]!r}{_nearest(sorted(unknown)[0], fields)}")
    settings = kind(**values)

    settings.check(lambda name: origins[name] if name in values else f"DUALMAP_{name}".upper())
    return Loaded(settings, origins)


def _from_kubernetes(name: str, value: str) -> bool:
    """Whether a variable says where some Service is; a port that is a number is a setting."""
    return _KUBERNETES_NAME.fullmatch(name) is not None or (
        name.endswith("_PORT") and _KUBERNETES_VALUE.fullmatch(value) is not None
    )


def _reject_unknown(environ: Mapping[str, str], service: str, fields: set[str], shared: set[str]) -> None:
    """Every DUALMAP_ variable must be one that some service reads."""
    own = {f"DUALMAP_{service}_{name}".upper() for name in fields}
    common = {f"DUALMAP_{name}".upper() for name in shared}
    others = tuple(f"DUALMAP_{other}_".upper() for other in SERVICES if other != service)
    for variable in sorted(environ):
        if not variable.startswith("DUALMAP_") or variable in own | common:
            continue
        if variable.startswith(others):
            continue
        raise SettingsError(f"unknown setting {variable}{_nearest(variable, own | common)}")


def _nearest(name: str, known: "set[str] | Mapping[str, Any]") -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(value: Any, kind: Any, label: str) -> Any:
    """A value as its field's type; a comma-separated string for a tuple."""
    if isinstance(value, str) and getattr(kind, "__origin__", None) is tuple:
        value = [part for part in value.split(",") if part]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{label}: {exc} (got {value!r})") from exc


def _masked(name: str, value: Any) -> str:
    """A value fit to print."""
    if any(word in name for word in _SECRETS):
        return "(set)" if value else "(not set)"
    if isinstance(value, str) and "://" in value:
        scheme, _, rest = value.partition("://")
        place, asks, _ = rest.partition("?")
        login, at, place = place.rpartition("@")
        return f"{scheme}://{'***' if login else ''}{at}{place}{'?***' if asks else ''}"
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)
