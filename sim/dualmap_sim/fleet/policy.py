"""What the fleet asks of a placement policy."""

from typing import Protocol, runtime_checkable

from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight


class PlacementPolicy(Protocol):
    """Decides where a request goes; one object serves all routers of a run and may keep state."""

    def place(self, flight: Flight, sight: Sight) -> Choice | None:
        """Choose an instance; None lets the request wait at its router, and be asked for again every 100 ms."""


@runtime_checkable
class FeedbackPolicy(Protocol):
    """A policy that also learns from what becomes of the requests."""

    def first_token(self, flight: Flight) -> None:
        """The prefill is over."""

    def finished(self, flight: Flight) -> None:
        """The last token is out."""
