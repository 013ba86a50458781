"""Who sends a request, as far as the router knows."""

from dataclasses import dataclass

from dualmap.limits import Limits
from dualmap_router.errors import ApiError


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of an API key, or anyone where keys are not asked for."""

    name: str = ""
    """Of the key."""
    tenant: str = ""
    """Whose prompts, limits and share these are; empty where clients do not say who they are."""
    admin: bool = False
    """Whether it may look inside: /debug/*, and what the live page shows."""
    limits: Limits | None = None
    """Of the tenant; None for none."""
    most_urgent: int | None = None
    """The smallest priority that it may ask for; None for any."""

    def check_admin(self) -> None:
        """ApiError 403 for who is no administrator."""
        if not self.admin:
            message = "this key is no administrator's"
            raise ApiError(403, message, "permission_error", "insufficient_permissions")


NOBODY = Caller()
"""Who has shown no key, where one is asked for."""
ANYONE = Caller(admin=True)
"""Whoever comes, where no key is asked for: the port is open to people who may."""
