"""docs/metrics.md lists what running services expose: no metric more, none less, with its type and labels."""

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dualmap_cli.stack import Stack, StackOptions
from dualmap_rebalancer.metrics import Metrics
from dualmap_router.metrics import RouterMetrics

from ..metric_list import Metric, documented
from .conftest import chat, leftovers, post, unique_text
from .load_checks import fetch, metric, rebalancer_url

_OWN_LABELS = ("le",)


async def exposed(url: str) -> dict[str, Metric]:
    """What a page shows, each with the labels of its samples."""
    found = {}
    for family in text_string_to_metric_families(await fetch(f"{url}/metrics")):
        if family.name.startswith("dualmap_") and not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - set(_OWN_LABELS)
            found[name] = Metric(name, family.type, frozenset(labels))
    return found


def labels_of(registry: CollectorRegistry) -> dict[str, frozenset[str]]:
    """Label names of every metric, also of those that nothing has happened to yet."""
    # The client has no public way to ask a metric for its label names.
    collectors = registry._names_to_collectors
    return {name: frozenset(getattr(metric, "_labelnames", ())) for name, metric in collectors.items()}


async def test_the_list_is_what_services_expose(system: Stack, http: aiohttp.ClientSession) -> None:
    text = unique_text(9000)
    for _ in range(2):
        for url in system.router_urls:
            status, _, _ = await post(http, url, "/v1/chat/completions", chat(text, stream=False))
            assert status == 200
    rebalancer = await rebalancer_url(system)
    shown = {**await exposed(system.router_urls[0]), **await exposed(rebalancer)}
    listed = documented()
    assert {name: m.kind for name, m in shown.items()} == {name: m.kind for name, m in listed.items()}
    for name, row in shown.items():
        # One that nothing has happened to yet has no samples, and so no labels.
        assert row.labels in (listed[name].labels, frozenset()), name
    labels = {**labels_of(RouterMetrics().registry), **labels_of(Metrics().registry)}
    for name, row in listed.items():
        assert labels.get(name, frozenset()) == row.labels, name


async def test_what_was_expected_to_be_cached_is_counted_beside_what_was(http: aiohttp.ClientSession) -> None:
    # Without KV events nobody tells the routers when an engine drops what it holds.
    blind = {"kv_events_url": "", "kv_replay_url": ""}
    async with Stack(StackOptions(routers=1, workers=1, rebalancers=0, worker_flags=blind)) as stack:
        [url], [engine], text = stack.router_urls, stack.engine_urls, unique_text(12_000)

        async def ask() -> tuple[float, float]:
            """(expected, missed) of one more request."""
            names = ("expected", "missed")
            before = [await metric(url, f"dualmap_{name}_cached_tokens_total") for name in names]
            status, _, _ = await post(http, url, "/v1/chat/completions", chat(text))
            assert status == 200
            after = [await metric(url, f"dualmap_{name}_cached_tokens_total") for name in names]
            return after[0] - before[0], after[1] - before[1]

        assert await ask() == (0, 0)
        expected, missed = await ask()
        assert expected > 1000
        assert missed < 0.2 * expected
        async with http.post(f"{engine}/reset_prefix_cache") as reply:
            assert reply.status == 200, await reply.text()
        expected, missed = await ask()
        assert missed == expected > 1000
        assert (await leftovers(stack)).clean
