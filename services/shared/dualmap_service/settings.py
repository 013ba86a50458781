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

from dualmap_service.access import AccessSettings
from dualmap_service.errors import SettingsError

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(gt=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
CollectorUrl = Annotated[str, msgspec.Meta(pattern="^$|^https?://")]

SERVICES = ("router", "worker", "rebalancer")
_KUBERNETES_NAME = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://.*")
_SECRET = re.compile(r"(^|_)(secret|password|token|api_key)$")
_IN_TEXT = (
    # Whoever is named before a host, with or without a scheme.
    (re.compile(r"(?<=://)\S*@|^(?!\w+://)\S*@"), "***@"),
    (re.compile(r"([?&](?:user(?:name)?|pass(?:word)?)=)[^&\s]*"), r"\1***"),
    (re.compile(r"(--(?:api-key|hf-token)[= ])\s*\S+"), r"\1***"),
)


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
        """(name, value, origin) of every field; secrets, and those in URLs and command lines, are masked."""
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
                values[name] = _convert(name, environ[variable], field.type, variable)
                origins[name] = variable
        flag = (flags or {}).get(name)
        if flag is not None:
            origins[name] = "--" + name.replace("_", "-")
            values[name] = _convert(name, flag, field.type, origins[name])
    unknown = set(flags or {}) - set(fields)
    if unknown:
        raise SettingsError(f"unknown setting {sorted(unknown)[0]!r}{_nearest(sorted(unknown)[0], fields)}")
    settings = kind(**values)

    def label(name: str) -> str:
        owner = "" if name in shared else f"{service}_"
        return origins[name] if name in values else f"DUALMAP_{owner}{name}".upper()

    settings.check(label)
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


def _convert(name: str, value: Any, kind: Any, label: str) -> Any:
    """A value as its field's type; a comma-separated string for a tuple."""
    if isinstance(value, str) and getattr(kind, "__origin__", None) is tuple:
        value = [part for part in value.split(",") if part]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"{label}: {exc} (got {_masked(name, value)!r})") from exc


def _masked(name: str, value: Any) -> str:
    """A value fit to print."""
    if _SECRET.search(name):
        return "(set)" if value else "(not set)"
    if isinstance(value, str):
        for pattern, mask in _IN_TEXT:
            value = pattern.sub(mask, value)
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return str(value)
