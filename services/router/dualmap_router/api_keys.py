"""The API keys file: who may come, for which tenant, and how much.

    {"keys": [{"name": "acme-prod", "sha256": "<64 hex digits>", "tenant": "acme", "requests_per_s": 50, "burst": 100,
               "concurrency": 200, "priority": -1, "admin": false, "expires": "2027-01-01T00:00:00Z"}]}

A key is 256 random bits, of which the file holds the SHA-256: docs/decisions/0018 says why that is enough.
"""

import hashlib
import hmac
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec

from dualmap.limits import Limits
from dualmap_router.caller import Caller

KEY_PREFIX = "dualmap-"
"""Scanners for leaked secrets know a key by it."""
MAX_FILE_BYTES = 8 * 1024 * 1024
_MAX_KEY_CHARS = 512

_Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=0)]
"""Up to 0, which is what a request has that says nothing."""


class KeysError(ValueError):
    """The keys file is not one; the message names what is wrong and no key."""


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the file has it. Limits are the tenant's: all of its keys say the same."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    tenant: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    requests_per_s: _Rate | None = None
    burst: _Number | None = None
    """Requests that may come at once after a pause; a second's worth when not given."""
    concurrency: _Number | None = None
    """Requests at once."""
    priority: _Priority | None = None
    """The most urgent, thus the smallest, that its requests may ask for; 0 when not given."""
    admin: bool = False
    """May also look inside, and ask for any priority."""
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    def limits(self) -> Limits:
        """Of its tenant."""
        rate = self.requests_per_s or 0.0
        return Limits(rate, self.burst or max(1, math.ceil(rate)), self.concurrency or 0)

    def most_urgent(self) -> int | None:
        """The smallest priority that it may ask for; None for any."""
        return None if self.admin else self.priority or 0


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: list[KeyEntry]


_file = msgspec.json.Decoder(KeyFile)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that may be shown."""

    digest: bytes
    caller: Caller
    expires_s: float
    """Unix time; infinite for never."""


class Keyring:
    """All keys of a file, by their digest."""

    def __init__(self, entries: Sequence[KeyEntry] = ()) -> None:
        self._keys = {key.digest: key for key in map(_api_key, entries)}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)

    def find(self, shown: str) -> ApiKey | None:
        """The key that a client shows; it may have expired."""
        if len(shown) > _MAX_KEY_CHARS:
            return None
        digest = hashlib.sha256(shown.encode("latin-1")).digest()
        key = self._keys.get(digest)
        # What the look-up's time tells of digests tells nothing of keys; compared once more all the same.
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def read_entries(text: bytes) -> list[KeyEntry]:
    """The entries of a keys file; KeysError says what is wrong with it."""
    if len(text) > MAX_FILE_BYTES:
        raise KeysError(f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        entries = _file.decode(text).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise KeysError(str(exc)) from exc
    check_entries(entries)
    return entries


def check_entries(entries: Sequence[KeyEntry]) -> None:
    """KeysError for entries that contradict each other."""
    names: set[str] = set()
    digests: dict[str, str] = {}
    tenants: dict[str, KeyEntry] = {}
    for entry in entries:
        if entry.name in names:
            raise KeysError(f"two keys are named {entry.name!r}")
        names.add(entry.name)
        if entry.sha256 in digests:
            raise KeysError(f"{digests[entry.sha256]!r} and {entry.name!r} are the same key")
        digests[entry.sha256] = entry.name
        if entry.burst is not None and entry.requests_per_s is None:
            raise KeysError(f"{entry.name!r} has a burst and no requests_per_s")
        if entry.priority is not None and entry.admin:
            raise KeysError(f"{entry.name!r} has a priority and is an administrator's, who may ask for any")
        first = tenants.setdefault(entry.tenant, entry)
        if first.limits() != entry.limits():
            raise KeysError(
                f"{first.name!r} and {entry.name!r} give tenant {entry.tenant!r} different limits: "
                "they are the tenant's, and all of its keys say the same"
            )


def new_key() -> tuple[str, str]:
    """(a new key, its SHA-256 in hexadecimal digits)."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _api_key(entry: KeyEntry) -> ApiKey:
    limits = entry.limits()
    return ApiKey(
        digest=bytes.fromhex(entry.sha256),
        caller=Caller(
            entry.name,
            entry.tenant,
            entry.admin,
            limits if limits.any else None,
            entry.most_urgent(),
        ),
        expires_s=math.inf if entry.expires is None else entry.expires.timestamp(),
    )
