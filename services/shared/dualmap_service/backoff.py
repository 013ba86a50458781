"""How long to wait before something is tried again: longer each time, and not in step with others."""

import random


class Backoff:
    """The pauses between the tries of one thing.

    A pause is drawn from between half of it and all of it, so that those who lost the same thing at the same time do
    not all come back at once.
    """

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._pause_s = first_s
        self._most_s = max(first_s, most_s)

    def next_s(self) -> float:
        """How long to wait now; the next pause is twice as long, up to the longest."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._most_s)
        return pause_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: the next pause is the first again."""
        self._pause_s = self._first_s
