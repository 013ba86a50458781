"""What the rebalancer counts: every metric by name, in a registry of its own."""

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from dualmap_wire.telemetry import QueueReport

_PASS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PREFIX = "dualmap_rebalancer_"


class Outcome(StrEnum):
    """What became of a planned move: a metric label."""

    ASKED = "asked"
    """Sent to the source's worker; each ends as one of the others."""
    DONE = "done"
    """The worker took it off its queue and told its router."""
    LATE = "late"
    """It had started or ended before."""
    FENCED = "fenced"
    """The worker has obeyed a newer leader."""
    FAILED = "failed"
    """The worker did not answer in time; whether it moved is unknown."""


class Metrics:
    """The rebalancer's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leader = self._gauge("leader", "1 while this process may act as the leader.")
        self.hot_instances = self._gauge("hot_instances", "Instances that need relief, as of the last pass.")
        self.moves = self._counter("moves_total", "Moves by outcome.", "source", "target", "outcome")
        self.move_benefit_seconds = self._counter(
            "move_benefit_seconds_total", "Expected TTFT seconds saved by the moves that were done."
        )
        self.passes = self._counter("passes_total", "Rebalancing passes.")
        self.pass_seconds = self._histogram("pass_seconds", "Time of a pass: read the queues, plan, send.")
        self.reports = self._counter("reports_total", "Queue reports taken.", "instance")
        self.preemptions = self._counter(
            "preemptions_total", "Late prefills that gave way to requests that could be in time.", "instance"
        )
        self.gaps = self._counter("telemetry_gaps_total", "Telemetry messages that got lost.")
        self.garbage = self._counter("telemetry_garbage_total", "Telemetry messages that cannot be read.")
        self.restarts = self._counter("telemetry_restarts_total", "New generations seen in telemetry.")
        self.kv_events = self._gauge(
            "instance_kv_events",
            "1 where ownership follows the engine's KV events, 0 where it is what routers expect.",
            "instance",
        )
        self.kv_events_lost = self._gauge(
            "instance_kv_events_lost",
            "Times that KV events were missed for good, since its worker began.",
            "instance",
        )
        self.owned_chunks = self._gauge(
            "instance_owned_chunks", "Prompt chunks in the KV cache, as its events tell.", "instance"
        )
        self.telemetry_age = self._gauge(
            "instance_telemetry_age_seconds", "Since the newest queue report was taken.", "instance"
        )
        self.work_seconds = self._gauge(
            "instance_work_seconds", "Expected prefill time in the engine and its queue.", "instance"
        )
        self.queued = self._gauge("instance_queued", "Requests that wait for the engine's turn.", "instance")
        self.fold_seconds = self._histogram("fold_seconds", "Time to fold telemetry into Redis.")
        self.reaped = self._counter("reaped_total", "What the dead left behind.", "kind")
        self._pairs: set[tuple[str, str]] = set()
        ProcessCollector(registry=self.registry)

    def count_move(self, source: str, target: str, outcome: Outcome) -> None:
        """Count one move."""
        self._pairs.add((source, target))
        self.moves.labels(source, target, outcome).inc()

    def reported(self, report: QueueReport) -> None:
        """Take what a worker says of its engine."""
        self.reports.labels(report.instance).inc()
        self.kv_events.labels(report.instance).set(report.kv_events)
        self.kv_events_lost.labels(report.instance).set(report.kv_events_lost)
        self.owned_chunks.labels(report.instance).set(report.owned_chunks)

    def look(
        self,
        instance: str,
        age_s: Callable[[], float],
        work_s: Callable[[], float],
        queued: Callable[[], int],
    ) -> None:
        """Read these of an instance when scraped."""
        self.telemetry_age.labels(instance).set_function(age_s)
        self.work_seconds.labels(instance).set_function(work_s)
        self.queued.labels(instance).set_function(queued)

    def forget(self, instance: str) -> None:
        """Drop the series of an instance that left, so that they stay bounded by the pool's size."""
        for metric in (
            self.reports,
            self.preemptions,
            self.kv_events,
            self.kv_events_lost,
            self.owned_chunks,
            self.telemetry_age,
            self.work_seconds,
            self.queued,
        ):
            _remove(metric, instance)
        gone = {pair for pair in self._pairs if instance in pair}
        self._pairs -= gone
        for source, target in gone:
            for outcome in Outcome:
                _remove(self.moves, source, target, outcome)

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(_PREFIX + name, text, buckets=_PASS_BUCKETS, registry=self.registry)


def _remove(metric: Counter | Gauge, *labels: str) -> None:
    """Remove one series, if it is there (removing an unknown one is an error in some versions)."""
    metric.labels(*labels)
    metric.remove(*labels)
