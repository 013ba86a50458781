"""A keys file as an operator writes one, and its keys in the clear."""

import hashlib
import json
from pathlib import Path
from typing import Any


def entry(key: str, name: str = "", tenant: str = "acme", **fields: Any) -> dict[str, Any]:
    """A key's entry; `name` is the key itself unless given."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {"name": name or key, "sha256": digest, "tenant": tenant, **fields}


def text_of(*entries: dict[str, Any]) -> bytes:
    """The file's text."""
    return json.dumps({"keys": list(entries)}).encode()


def write(path: Path, *entries: dict[str, Any]) -> Path:
    """Write the file in place."""
    path.write_bytes(text_of(*entries))
    return path
