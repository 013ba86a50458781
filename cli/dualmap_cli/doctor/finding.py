"""What the doctor finds."""

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at: how it is, and what to do if it is not well."""

    state: Literal["ok", "warn", "bad"]
    about: str
    says: str
    do: str = ""
