"""What a fault is: something that is done to a world and undone again."""

from dataclasses import dataclass
from typing import ClassVar

from ..world import World

# Lines of DESIGN section 8, as `docs/reliability.md` numbers them.
LOST_BEFORE = "1 worker or engine dies, request not answered yet: another answers"
LOST_HALF_WAY = "2 it dies mid-stream: the text goes on"
ROUTER = "3 a router dies: clients ask another, charges are reaped"
REBALANCER = "4 the rebalancer dies: a standby leads, routing goes on"
STORE = "5 the store is down, slow or flushed: routers decide alone"
TELEMETRY = "6 telemetry is lost or late: stale is unknown"
CLIENT = "7 a client goes away: its work ends"
OVERLOAD = "8 overload: 429 with Retry-After, bounded queues"
SIGTERM = "9 SIGTERM: running answers finish, queued ones move"
CLOCKS = "10 a wall clock is set: nobody notices"
UNPROMISED = "- not promised"

CONNECTION_ENDS = frozenset(("connect", "disconnected", "cut"))
"""What a client sees of a router that dies: it asks another."""
TURNED_AWAY = frozenset(("connect", "disconnected", "http_503"))
"""What a client sees of a router that stops, or that reaches nobody: nothing that had begun."""


@dataclass
class Fault:
    """One thing that goes wrong with one part; a fresh object each time."""

    part: str = ""

    of: ClassVar[str] = ""
    """What kind of part it befalls, for a schedule to pick one; empty if it finds its part itself."""
    promise: ClassVar[str] = UNPROMISED
    retried: ClassVar[frozenset[str]] = frozenset()
    """Errors after which a client may have to ask another router: those of the one it befalls, or of any if none."""
    visible: ClassVar[frozenset[str]] = frozenset()
    """Errors that may reach the user all the same."""
    lasts_s: ClassVar[tuple[float, float]] = (1.0, 5.0)
    """How long a schedule leaves it."""

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.part})" if self.part else type(self).__name__

    async def apply(self, world: World) -> None:
        """Break it."""
        raise NotImplementedError

    async def heal(self, world: World) -> None:
        """Mend it; returns when it is whole again."""
