"""Counters and histograms without locks say what prometheus_client's own say."""

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dualmap_router.tallies import Counter, Histogram

EDGES = (0.1, 1, 10)
VALUES = (0.05, 0.1, 0.5, 1.0, 7, 10.0, 11, 1e6)


def lines(registry: CollectorRegistry) -> list[str]:
    """An exposition without the times of creation."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_they_expose_what_the_library_does() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter = Counter("hits", "Hits.", ("path", "status"), ours)
    other = prometheus_client.Counter("hits", "Hits.", ["path", "status"], registry=theirs)
    bare = Counter("bare", "Bare.", (), ours).of()
    other_bare = prometheus_client.Counter("bare", "Bare.", registry=theirs)
    histogram = Histogram("took", "Took.", EDGES, ours)
    other_histogram = prometheus_client.Histogram("took", "Took.", buckets=EDGES, registry=theirs)
    for number in range(5):
        counter.of("/v1", 200 + number % 2).inc(number)
        other.labels("/v1", str(200 + number % 2)).inc(number)
        bare.inc()
        other_bare.inc()
    for value in VALUES:
        histogram.observe(value)
        other_histogram.observe(value)
    assert lines(ours) == lines(theirs)


def test_a_bucket_keeps_its_last_exemplar() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("took", "Took.", EDGES, registry)
    for value, trace in ((0.2, "a"), (0.3, "b"), (5, None)):
        histogram.observe(value, None if trace is None else {"trace_id": trace})
    [family] = text_string_to_metric_families(open_metrics(registry).decode())
    kept = {sample.labels["le"]: sample.exemplar for sample in family.samples if "le" in sample.labels}
    assert kept["1.0"].labels == {"trace_id": "b"}
    assert [edge for edge, exemplar in kept.items() if exemplar] == ["1.0"]
