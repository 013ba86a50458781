"""Counters and histograms that only the event loop's thread touches: plain sums, which become samples when scraped.

prometheus_client's own take a lock and check their labels at every increment: nine of them cost a request more than
its JSON (docs/decisions/0025).
"""

import time
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar


class Tally:
    """A sum that only grows."""

    __slots__ = ("since_s", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.since_s = time.time()

    def inc(self, amount: float = 1.0) -> None:
        """Count something."""
        self.value += amount


class Counter(Collector):
    """A counter with labels: a tally for each combination of their values."""

    def __init__(self, name: str, about: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._about = about
        self._labelnames = tuple(labels)
        self._tallies: dict[tuple[Hashable, ...], Tally] = {}
        registry.register(self)

    def of(self, *values: Hashable) -> Tally:
        """The tally of these label values."""
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally()
        return tally

    def describe(self) -> Iterable[CounterMetricFamily]:
        """The name, for the registry."""
        return (CounterMetricFamily(self._name, self._about, labels=self._labelnames),)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """All tallies, as a scraper takes them."""
        family = CounterMetricFamily(self._name, self._about, labels=self._labelnames)
        for values, tally in self._tallies.items():
            family.add_metric([str(value) for value in values], tally.value, created=tally.since_s)
        yield family


class Histogram(Collector):
    """A histogram without labels."""

    def __init__(self, name: str, about: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        """`buckets` are their upper edges; one for what is beyond the last is added."""
        self._name = name
        self._about = about
        self._edges = (*buckets, inf)
        self._counts = [0] * len(self._edges)
        self._exemplars: list[Exemplar | None] = [None] * len(self._edges)
        self._sum = 0.0
        self._since_s = time.time()
        registry.register(self)

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value; the last exemplar of a bucket is kept."""
        bucket = bisect_left(self._edges, value)
        self._counts[bucket] += 1
        self._sum += value
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(exemplar, value, time.time())

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The name, for the registry."""
        return (HistogramMetricFamily(self._name, self._about),)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The buckets, as a scraper takes them."""
        family = HistogramMetricFamily(self._name, self._about)
        for edge, count, exemplar in zip(self._edges, accumulate(self._counts), self._exemplars, strict=True):
            family.add_sample(
                f"{self._name}_bucket",
                {"le": "+Inf" if edge == inf else str(float(edge))},
                count,
                None,
                exemplar,
            )
        family.add_sample(f"{self._name}_count", {}, sum(self._counts))
        family.add_sample(f"{self._name}_sum", {}, self._sum)
        family.add_sample(f"{self._name}_created", {}, self._since_s)
        yield family
