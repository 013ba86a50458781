"""The router's metrics."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from dualmap.types import Reason
from dualmap_router.tallies import Counter, Histogram, Tally

# A share within an objective is exact only where the objective is an edge: 5 s is the default one.
TTFT_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 60, 120)
ERROR_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1, 2, 5, 10, 30)
DECISION_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class RouterMetrics:
    """Counters and histograms named `dualmap_*`, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"dualmap_{name}", about, labels, registry)

        def tally(name: str, about: str) -> Tally:
            return counter(name, about).of()

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"dualmap_{name}", about, buckets, registry)

        self._requests = counter("requests", "Requests by endpoint and status.", "path", "status")
        self._decisions = counter("decisions", "Placements by instance and reason.", "instance", "reason")
        self.local_decisions = tally("local_decisions", "Placements decided without Redis.")
        self._resubmissions = counter("resubmissions", "Requests sent to another instance.", "why")
        self.decision_s = histogram(
            "decision_seconds", "From the body read to the frame handed to the session.", DECISION_BUCKETS
        )
        self.ttft_s = histogram(
            "ttft_seconds", "From the body read to the first byte of a stream.", TTFT_BUCKETS
        )
        self.ttft_error_s = histogram(
            "ttft_error_seconds",
            "Absolute difference of predicted and actual TTFT of streams.",
            ERROR_BUCKETS,
        )
        self.answer_s = histogram(
            "answer_seconds", "From the body read to the last byte of the answer.", TTFT_BUCKETS
        )
        slo = counter("slo", "First bytes of streams within and beyond their TTFT objective.", "met")
        self.slo_met = slo.of("yes")
        self.slo_missed = slo.of("no")
        self.cached_tokens = tally("cached_tokens", "Prompt tokens that engines reported as cached.")
        self.prompt_tokens = tally("prompt_tokens", "Prompt tokens that engines reported.")
        self._expected_cached = counter(
            "expected_cached_tokens",
            "Prompt tokens that placements took to be cached, of answers whose engine reported.",
            "instance",
        )
        self._missed_cached = counter(
            "missed_cached_tokens", "Those of them that the engine had to compute after all.", "instance"
        )
        self.client_gone = tally("client_gone", "Clients that left before their answer ended.")
        self.resumed = tally("resumed_streams", "Streams that went on with another instance.")
        self.reconciled = tally("charges_reconciled", "Charges that Redis had leaked or lost.")
        self._turned_away = counter("auth_failures", "Requests without a key that may come in.", "why")
        self._limited = counter("limited", "Requests beyond their tenant's limits.", "why")
        self.local_limits = tally(
            "local_limits", "Requests held to a share of their tenant's limits, without Redis."
        )

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A gauge that is read when scraped."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def request(self, path: str, status: int) -> None:
        """Count an answered request."""
        self._requests.of(path, status).inc()

    def decision(self, instance: str, reason: Reason | None) -> None:
        """Count a placement."""
        self._decisions.of(instance, reason).inc()

    def resubmission(self, why: str) -> None:
        """Count a request that had to go elsewhere."""
        self._resubmissions.of(why).inc()

    def cached(self, instance: str, expected: int, reported: int) -> None:
        """Count what an engine found cached, beside what its placement expected."""
        self.cached_tokens.inc(reported)
        self._expected_cached.of(instance).inc(expected)
        self._missed_cached.of(instance).inc(max(expected - reported, 0))

    def turned_away(self, why: str) -> None:
        """Count a request that was not let in."""
        self._turned_away.of(why).inc()

    def limited(self, why: str) -> None:
        """Count a request beyond its tenant's limits."""
        self._limited.of(why).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """(exposition, content type) in a format that the scraper accepts; OpenMetrics has the exemplars."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
