"""Who sends a request, as far as the router knows."""

from dataclasses import dataclass

from dualmap.limits import Limits


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of an API key, or anyone where keys are not asked for."""

    name: str = ""
    """Of the key."""
    tenant: str = ""
    """Whose prompts, limits and share these are; empty where clients do not say who they are."""
    admin: bool = False
    """Whether it may look inside: /debug/*."""
    limits: Limits | None = None
    """Of the tenant; None for none."""


NOBODY = Caller()
"""Who has shown no key, where one is asked for."""
ANYONE = Caller(admin=True)
"""Whoever comes, where no key is asked for: the port is open to people who may."""
