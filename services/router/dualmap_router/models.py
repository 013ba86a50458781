"""The models that a pool serves, by the names that clients use."""

from collections.abc import Mapping
from typing import Any

import msgspec

from dualmap_router.errors import ApiError
from dualmap_service.registry import Membership
from dualmap_wire.telemetry import Registration


class Models:
    """Model and adapter names of the current membership; worked out once per membership."""

    def __init__(self) -> None:
        self._of: Membership | None = None
        self._by_name: dict[str, Registration] = {}

    def follow(self, membership: Membership) -> None:
        """Take a membership."""
        if membership is self._of:
            return
        self._of = membership
        self._by_name = {}
        for member in membership.members.values():
            registration = member.registration
            for name in registration.serves:
                self._by_name.setdefault(name, registration)

    @property
    def by_name(self) -> Mapping[str, Registration]:
        """Each name with a registration that serves it."""
        return self._by_name

    def check(self, name: str | None) -> None:
        """ApiError 404 for a model that nobody serves; an empty pool cannot tell."""
        if name is not None and self._by_name and name not in self._by_name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist",
                "invalid_request_error",
                "model_not_found",
                "model",
            )

    def adapter(self, name: str | None) -> str:
        """The LoRA adapter that a name stands for; empty for the base model."""
        registration = self._by_name.get(name or "")
        return name if name and registration is not None and name in registration.adapters else ""

    def listing(self) -> bytes:
        """The body of /v1/models."""
        data: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "dualmap",
                "root": registration.model,
                "parent": registration.model if name in registration.adapters else None,
                "max_model_len": registration.max_model_len or None,
            }
            for name, registration in sorted(self._by_name.items())
        ]
        return msgspec.json.encode({"object": "list", "data": data})
