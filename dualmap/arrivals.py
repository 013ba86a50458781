"""The jobs of an admission queue in order of arrival, so kept that who can be in time is found without a look at all.

An order (`queue_order`) says how a whole queue would be served, which takes time in proportion to it. To start one
request takes less: under `late-last` the oldest, and the oldest that can be in time. Past saturation nearly all of a
queue has missed its deadline, which nothing mends any more: those are kept apart, so a start looks at no more than
what arrived within an objective, however long the queue has become.
"""

from bisect import insort
from collections import Counter
from heapq import heappop, heappush
from itertools import count, islice
from typing import NamedTuple

from dualmap.job import Job
from dualmap.types import PrefillSpeed

_LEFT = 64
"""Places of who has left are cleared once there are so many more of them than of who waits."""


class _Entry(NamedTuple):
    """A place: equal arrivals by the longer cached prefix, then by id, as `queue_order.order` has them.

    Without the job: a place outlives who had it, and a job has its whole body.
    """

    arrival_s: float
    uncached: int
    request_id: str
    number: int


class Arrivals:
    """Waiting jobs. The place of one that leaves is cleared when it is next looked at, or with many."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[_Entry, Job]] = {}
        self._kinds: Counter[tuple[str, int]] = Counter()
        self._numbers = count()
        self._hopeful: list[_Entry] = []
        """Sorted; among them some whose deadline has gone by since they were last looked at."""
        self._hopeless: list[_Entry] = []
        """A heap."""

    @property
    def alike(self) -> bool:
        """Whether all are of one tenant and one priority."""
        return len(self._kinds) <= 1

    def add(self, job: Job) -> None:
        """A job waits, perhaps again."""
        entry = _Entry(job.arrival_s, -job.cached_tokens, job.request_id, next(self._numbers))
        self._entries[job.request_id] = entry, job
        self._kinds[job.tenant, job.priority] += 1
        insort(self._hopeful, entry)

    def remove(self, job: Job) -> None:
        """It waits no more."""
        del self._entries[job.request_id]
        kind = job.tenant, job.priority
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]
        if len(self._hopeful) + len(self._hopeless) > 2 * len(self._entries) + _LEFT:
            self._hopeful = list(filter(self._job, self._hopeful))
            # What is sorted is a heap.
            self._hopeless = sorted(filter(self._job, self._hopeless))

    def oldest(self) -> Job:
        """Who came first; there must be one."""
        while self._hopeless and self._job(self._hopeless[0]) is None:
            heappop(self._hopeless)
        places = self._hopeless[:1]
        places += islice(filter(self._job, self._hopeful), 1)
        return self._entries[min(places).request_id][1]

    def oldest_in_time(self, now_s: float, ready_s: float, speed: PrefillSpeed) -> Job | None:
        """Who came first of those that meet their SLO if begun at `ready_s`, which is now or later; None for nobody."""
        looked: list[_Entry] = []
        found: Job | None = None
        seen = 0
        for entry in self._hopeful:
            seen += 1
            job = self._job(entry)
            if job is None:
                continue
            deadline_s = job.arrival_s + job.slo_s
            if deadline_s < now_s:
                heappush(self._hopeless, entry)
                continue
            looked.append(entry)
            if ready_s + job.own_s(speed) <= deadline_s:
                found = job
                break
        self._hopeful[:seen] = looked
        return found

    def _job(self, place: _Entry) -> Job | None:
        """Who waits at a place; None if he has left."""
        entry, job = self._entries.get(place.request_id, (None, None))
        return job if entry is place else None
