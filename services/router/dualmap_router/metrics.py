"""The router's metrics. Labels are bound once, so that a request costs a few increments."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

# A share within an objective is exact only where the objective is an edge: 5 s is the default one.
TTFT_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 60, 120)
ERROR_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)
DECISION_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class RouterMetrics:
    """Counters and histograms named `dualmap_*`, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter(
            "dualmap_requests", "Requests by endpoint and status.", ["path", "status"], registry=registry
        )
        self._decisions = Counter(
            "dualmap_decisions",
            "Placements by instance and reason.",
            ["instance", "reason"],
            registry=registry,
        )
        self.local_decisions = Counter(
            "dualmap_local_decisions", "Placements decided without Redis.", registry=registry
        )
        self._resubmissions = Counter(
            "dualmap_resubmissions", "Requests sent to another instance.", ["why"], registry=registry
        )
        self.decision_s = Histogram(
            "dualmap_decision_seconds",
            "From the body read to the frame handed to the session.",
            buckets=DECISION_BUCKETS,
            registry=registry,
        )
        self.ttft_s = Histogram(
            "dualmap_ttft_seconds",
            "From the body read to the first byte of a stream.",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self.ttft_error_s = Histogram(
            "dualmap_ttft_error_seconds",
            "Absolute difference of predicted and actual TTFT of streams.",
            buckets=ERROR_BUCKETS,
            registry=registry,
        )
        self.answer_s = Histogram(
            "dualmap_answer_seconds",
            "From the body read to the last byte of the answer.",
            buckets=TTFT_BUCKETS,
            registry=registry,
        )
        self._slo = Counter(
            "dualmap_slo",
            "First bytes of streams within and beyond their TTFT objective.",
            ["met"],
            registry=registry,
        )
        self.slo_met = self._slo.labels("yes")
        self.slo_missed = self._slo.labels("no")
        self.cached_tokens = Counter(
            "dualmap_cached_tokens", "Prompt tokens that engines reported as cached.", registry=registry
        )
        self.prompt_tokens = Counter(
            "dualmap_prompt_tokens", "Prompt tokens that engines reported.", registry=registry
        )
        self._expected_cached = Counter(
            "dualmap_expected_cached_tokens",
            "Prompt tokens that placements took to be cached, of answers whose engine reported.",
            ["instance"],
            registry=registry,
        )
        self._missed_cached = Counter(
            "dualmap_missed_cached_tokens",
            "Those of them that the engine had to compute after all.",
            ["instance"],
            registry=registry,
        )
        self.client_gone = Counter(
            "dualmap_client_gone", "Clients that left before their answer ended.", registry=registry
        )
        self.resumed = Counter(
            "dualmap_resumed_streams", "Streams that went on with another instance.", registry=registry
        )
        self.reconciled = Counter(
            "dualmap_charges_reconciled", "Charges that Redis had leaked or lost.", registry=registry
        )
        self._turned_away = Counter(
            "dualmap_auth_failures", "Requests without a key that may come in.", ["why"], registry=registry
        )
        self._limited = Counter(
            "dualmap_limited", "Requests beyond their tenant's limits.", ["why"], registry=registry
        )
        self.local_limits = Counter(
            "dualmap_local_limits",
            "Requests held to a share of their tenant's limits, without Redis.",
            registry=registry,
        )
        self._children: dict[tuple[Any, ...], Any] = {}

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A gauge that is read when scraped."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def request(self, path: str, status: int) -> None:
        """Count an answered request."""
        self._child(self._requests, path, str(status)).inc()

    def decision(self, instance: str, reason: str) -> None:
        """Count a placement."""
        self._child(self._decisions, instance, reason).inc()

    def resubmission(self, why: str) -> None:
        """Count a request that had to go elsewhere."""
        self._child(self._resubmissions, why).inc()

    def cached(self, instance: str, expected: int, reported: int) -> None:
        """Count what an engine found cached, beside what its placement expected."""
        self.cached_tokens.inc(reported)
        self._child(self._expected_cached, instance).inc(expected)
        self._child(self._missed_cached, instance).inc(max(expected - reported, 0))

    def turned_away(self, why: str) -> None:
        """Count a request that was not let in."""
        self._child(self._turned_away, why).inc()

    def limited(self, why: str) -> None:
        """Count a request beyond its tenant's limits."""
        self._child(self._limited, why).inc()

    def _child(self, metric: Counter, *labels: str) -> Any:
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def render(self, accept: str) -> tuple[bytes, str]:
        """(exposition, content type) in a format that the scraper accepts; OpenMetrics has the exemplars."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
