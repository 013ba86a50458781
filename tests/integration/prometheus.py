"""A real Prometheus over a running system, with the rules of deploy/prometheus and time sixty times as fast."""

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import yaml

from dualmap_service.child import start_child

from ..metric_list import PROMETHEUS
from .load_checks import fetch, until

SPEED = 60
"""What takes a minute in production takes a second here: windows, `for` and intervals alike."""
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def _faster(durations: str) -> str:
    def one(match: re.Match[str]) -> str:
        return f"{max(int(match[1]) * _UNITS_MS[match[2]] // SPEED, 1)}ms"

    return re.sub(r"(\d+)(ms|s|m|h)", one, durations)


def faster_rules(file: str) -> dict[str, Any]:
    """A file of rules whose every duration is a sixtieth."""
    rules: dict[str, Any] = yaml.safe_load((PROMETHEUS / file).read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"\[[^]]+\]", lambda found: _faster(found[0]), rule["expr"])
        if "for" in rule:
            rule["for"] = _faster(rule["for"])
    return rules


class Prometheus:
    """A server that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return "is Ready" in await fetch(f"{self.url}/-/ready")
        except aiohttp.ClientError:
            return False

    async def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        answer = json.loads(await fetch(f"{self.url}/api/v1/alerts"))
        return {
            alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"
        }

    async def query(self, expression: str) -> list[float]:
        """Values of an instant query."""
        answer = json.loads(await fetch(f"{self.url}/api/v1/query?query={quote(expression)}"))
        assert answer["status"] == "success", (expression, answer)
        return [float(row["value"][1]) for row in answer["data"]["result"]]

    async def fire(self, *alerts: str, timeout_s: float = 75.0) -> None:
        """Wait until all of these fire."""

        async def all_fire() -> bool:
            return set(alerts) <= await self.firing()

        await until(all_fire, timeout_s, f"{alerts} fire")

    async def clear(self, *alerts: str, timeout_s: float = 90.0) -> None:
        """Wait until none of these fires."""

        async def none_fires() -> bool:
            return not set(alerts) & await self.firing()

        await until(none_fires, timeout_s, f"{alerts} clear")


@contextmanager
def watching(folder: Path, routers: Sequence[str], rebalancers: Sequence[str]) -> Iterator[Prometheus]:
    """Prometheus scraping these URLs, with the jobs and labels of deploy/prometheus/prometheus.yml."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "250ms")
    config["rule_files"] = ["recording.yml", "alerts.yml"]
    for job, urls in zip(config["scrape_configs"], (routers, rebalancers), strict=True):
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [url.removeprefix("http://") for url in urls]}]
    for file in config["rule_files"]:
        (folder / file).write_text(yaml.safe_dump(faster_rules(file)))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}")
    child = start_child(["prometheus", *flags], "prometheus", folder / "prometheus.log", cwd=folder)
    try:
        yield Prometheus(f"http://{address}")
    except BaseException:
        print(child.log_tail())
        raise
    finally:
        child.process.terminate()
        child.process.wait(20)
