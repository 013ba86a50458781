"""The engine's /metrics under vLLM's names; times are wall seconds, as a client measures them."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dualmap_sim.engine.realtime import SimEngine

_TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TTFT_LONG_BUCKETS_S = (20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_LATENCY_BUCKETS_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
_LATENCY_LONG_BUCKETS_S = (240.0, 480.0, 960.0, 1920.0, 7680.0)


class Histogram:
    """Counts per bucket."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the exposition format wants them."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


def ttft_histogram() -> Histogram:
    """An empty histogram with vLLM's bounds for the time to the first token."""
    return Histogram(_TTFT_BUCKETS_S + _TTFT_LONG_BUCKETS_S)


def latency_histogram() -> Histogram:
    """An empty histogram with vLLM's bounds for whole requests."""
    return Histogram(_LATENCY_BUCKETS_S + _LATENCY_LONG_BUCKETS_S)


class EngineCollector(Collector):
    """Reads one engine's state when it is scraped."""

    def __init__(self, engine: "SimEngine") -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """The engine's metric families."""
        model, name = self._engine.model, self._engine.spec.model
        labels = (name, "0")
        for family, text, value in (
            ("vllm:num_requests_running", "Requests in the running batch.", model.num_running),
            ("vllm:num_requests_waiting", "Requests that wait to be scheduled.", model.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", model.cache.usage),
        ):
            gauge = GaugeMetricFamily(family, text, labels=("model_name", "engine"))
            gauge.add_metric(labels, value)
            yield gauge
        for family, text, count in (
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                model.prompt_tokens,
            ),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", model.cached_tokens),
            ("vllm:prompt_tokens", "Prompt tokens processed.", model.prompt_tokens),
            ("vllm:prompt_tokens_cached", "Prompt tokens found in a cache.", model.cached_tokens),
            ("vllm:generation_tokens", "Tokens generated.", model.generated_tokens),
            ("vllm:num_preemptions", "Preemptions.", model.num_preemptions),
        ):
            counter = CounterMetricFamily(family, text, labels=("model_name", "engine"))
            counter.add_metric(labels, count)
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success",
            "Requests by their end.",
            labels=("model_name", "engine", "finished_reason"),
        )
        for reason, count in self._engine.ended.items():
            success.add_metric((*labels, reason), count)
        yield success
        for family, text, histogram in (
            ("vllm:time_to_first_token_seconds", "Time to first token.", self._engine.ttft),
            ("vllm:e2e_request_latency_seconds", "Time to the last token.", self._engine.latency),
        ):
            timing = HistogramMetricFamily(family, text, labels=("model_name", "engine"))
            timing.add_metric(labels, buckets=histogram.buckets(), sum_value=histogram.sum)
            yield timing
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        profile = self._engine.profile
        facts = {
            "block_size": str(profile.block_size),
            "num_gpu_blocks": str(profile.num_kv_blocks),
            "enable_prefix_caching": "True",
            "engine": "0",
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache's settings.", labels=tuple(facts))
        info.add_metric(tuple(facts.values()), 1.0)
        return info


def metrics_registry(engine: "SimEngine") -> CollectorRegistry:
    """A registry of one engine's metrics."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that /metrics answers."""
    return generate_latest(registry)
