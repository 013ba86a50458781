"""compose.yaml's profiles: what each starts, pinned, on loopback, with files and settings that are there."""

import json
import subprocess
from functools import cache
from typing import Any

import pytest

from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings

from ..metric_list import ROOT
from ..needs import needs

pytestmark = needs("docker compose")
SETTINGS: dict[str, type[SharedSettings]] = {
    "router": RouterSettings,
    "worker": WorkerSettings,
    "rebalancer": RebalancerSettings,
}
ADDED = {
    "load": {"load", "client"},
    "monitoring": {"prometheus", "grafana"},
    "vllm": {"vllm-1", "vllm-2", "vllm-worker-1", "vllm-worker-2", "vllm-rebalancer", "vllm-router"},
}


@cache
def config(*profiles: str) -> dict[str, Any]:
    """What Compose makes of the file; it needs no engine for that."""
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    command = ["docker", "compose", "--project-name", "test", *flags, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("profile", ADDED)
def test_a_profile_adds_its_services_and_no_others(profile: str) -> None:
    assert set(config(profile)["services"]) - set(config()["services"]) == ADDED[profile]


def test_nothing_is_published_beyond_loopback_and_every_image_is_pinned() -> None:
    for name, service in config("*")["services"].items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        if not service["image"].startswith("dualmap/"):
            assert service["image"].partition(":")[2] not in ("", "latest"), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["cap_drop"] == ["ALL"], name
        # vLLM compiles kernels into its own folders.
        assert service.get("read_only") or name in ("vllm-1", "vllm-2"), name


def test_every_service_that_stays_up_has_a_health_check() -> None:
    for name, service in config("*")["services"].items():
        # Our own images bring theirs along.
        if not service["image"].startswith("dualmap/"):
            assert service["healthcheck"]["test"], name
        assert service.get("healthcheck", {}).get("disable", False) == (name in ADDED["load"]), name


def test_vllm_has_all_that_it_is_said_to_have() -> None:
    services = config("vllm")["services"]
    started, asked = set(), ["vllm-router"]
    while asked:
        name = asked.pop()
        started.add(name)
        asked += set(services[name].get("depends_on", ())) - started
    assert started == ADDED["vllm"] | {"redis", "jaeger"}


def test_bases_can_be_pinned_by_digest() -> None:
    for name, service in config("*")["services"].items():
        if "build" in service:
            assert set(service["build"]["args"]) == {"PYTHON_IMAGE"}, name
    said = (ROOT / "Dockerfile").read_text()
    [base] = {
        service["build"]["args"]["PYTHON_IMAGE"]
        for service in config()["services"].values()
        if "build" in service
    }
    assert f"ARG PYTHON_IMAGE={base}\n" in said
    assert {line.split()[1] for line in said.splitlines() if line.startswith("FROM")} == {
        "${PYTHON_IMAGE}",
        "build",
        "runtime",
    }


def test_mounted_files_are_there_and_nothing_can_write_them() -> None:
    mounts = [
        mount
        for service in config("*")["services"].values()
        for mount in service.get("volumes", ())
        if mount["type"] == "bind"
    ]
    assert len(mounts) >= 6
    for mount in mounts:
        assert mount["read_only"], mount
        assert (ROOT / mount["source"]).exists(), mount


def test_each_vllm_has_a_gpu_of_its_own() -> None:
    services = config("vllm")["services"]
    devices = [
        device
        for name in ("vllm-1", "vllm-2")
        for device in services[name]["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]
    assert all(device["capabilities"] == ["gpu"] for device in devices)


def test_its_settings_are_settings() -> None:
    for name, service in config("*")["services"].items():
        kind = service["image"].removeprefix("dualmap/")
        if kind in SETTINGS:
            loaded = load_settings(SETTINGS[kind], kind, dict(service.get("environment", {})))
            # A pool serves one model, and the simulated engines serve another than vLLM.
            assert loaded.settings.pool == ("vllm" if name.startswith("vllm") else "demo")
