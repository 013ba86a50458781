"""Outposts: which instance outside its pair a prefix key went to last.

An escape or a move takes a prompt away from both candidates of its key, and its prefix with it. The next request
of that key would find neither candidate warm, and escape in turn, somewhere else. So the key remembers one such
instance, a third candidate for as long as it is used. Nothing is lost when it is forgotten but a warm cache.

Outposts live in two generations, as prefix counts do: when the current one is full the older one, which nobody
has used since, is dropped.
"""

from dataclasses import dataclass, field

MAX_OUTPOSTS = 4096
"""Per generation."""


@dataclass(slots=True)
class Outposts:
    """Prefix key -> instance; bounded."""

    current: dict[int, str] = field(default_factory=dict)
    older: dict[int, str] = field(default_factory=dict)

    def get(self, key: int) -> str | None:
        """The key's outpost, if it has one."""
        return self.current.get(key) or self.older.get(key)

    def put(self, key: int, instance: str) -> None:
        """A request of this key went to an instance outside its pair."""
        if key not in self.current and len(self.current) >= MAX_OUTPOSTS:
            self.older, self.current = self.current, {}
        self.current[key] = instance
