"""How a run is going: totals, and the last seconds."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from dualmap_cli.load.percentiles import percentile
from dualmap_cli.load.record import RequestRecord

_WINDOW_S = 5.0
_WINDOW_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run; TTFTs and `instances` are of the last real seconds, the rest of the whole run.

    `elapsed_s` and the TTFTs are model seconds.
    """

    total: int | None
    elapsed_s: float
    sent: int
    answered: int
    in_flight: int
    errors: int
    moves: int
    within_slo_share: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    instances: dict[str, int] = field(default_factory=dict)


class ProgressTracker:
    """Counts as requests are sent and finish; bounded, whatever the run's length."""

    def __init__(self, total: int | None, time_scale: float, window_s: float = _WINDOW_S) -> None:
        self._total = total
        self._time_scale = time_scale
        self._window_s = window_s
        self._started = time.perf_counter()
        self._recent: deque[tuple[float, float | None, str | None]] = deque(maxlen=_WINDOW_RECORDS)
        self._finished = self._answered = self._within = self._moves = 0
        self.sent = 0

    def finish(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        self._finished += 1
        self._answered += record.ok
        self._within += record.within_slo
        self._moves += record.moves
        self._recent.append((time.perf_counter(), record.ttft_s, record.instance))

    def snapshot(self) -> Progress:
        """The run as it is now."""
        now = time.perf_counter()
        while self._recent and self._recent[0][0] < now - self._window_s:
            self._recent.popleft()
        ttfts = sorted(ttft_s for _, ttft_s, _ in self._recent if ttft_s is not None)
        return Progress(
            total=self._total,
            elapsed_s=(now - self._started) * self._time_scale,
            sent=self.sent,
            answered=self._answered,
            in_flight=self.sent - self._finished,
            errors=self._finished - self._answered,
            moves=self._moves,
            within_slo_share=self._within / self._finished if self._finished else None,
            ttft_p50_s=percentile(ttfts, 0.5),
            ttft_p90_s=percentile(ttfts, 0.9),
            instances=dict(sorted(Counter(name for _, _, name in self._recent if name).items())),
        )
