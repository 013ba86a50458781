"""compose.yaml's profiles: what each starts, pinned, on loopback, with files and settings that are there."""

import json
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest

from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings

from ..metric_list import ROOT


def _compose_is_there() -> bool:
    command = ["docker", "compose", "version"]
    return (
        bool(shutil.which("docker"))
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


needs_compose = pytest.mark.skipif(not _compose_is_there(), reason="no docker compose here")
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


@needs_compose
@pytest.mark.parametrize("profile", ADDED)
def test_a_profile_adds_its_services_and_no_others(profile: str) -> None:
    assert set(config(profile)["services"]) - set(config()["services"]) == ADDED[profile]


@needs_compose
def test_nothing_is_published_beyond_loopback_and_every_image_is_pinned() -> None:
    for name, service in config("*")["services"].items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        if not service["image"].startswith("dualmap/"):
            assert service["image"].partition(":")[2] not in ("", "latest"), name
        assert "no-new-privileges:true" in service.get("security_opt", ()) or name == "jaeger"
        # vLLM compiles kernels into its own folders.
        assert service.get("read_only") or name in ("jaeger", "vllm-1", "vllm-2"), name


@needs_compose
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


@needs_compose
def test_each_vllm_has_a_gpu_of_its_own() -> None:
    services = config("vllm")["services"]
    devices = [
        device
        for name in ("vllm-1", "vllm-2")
        for device in services[name]["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]
    assert all(device["capabilities"] == ["gpu"] for device in devices)


@needs_compose
def test_its_settings_are_settings() -> None:
    for name, service in config("*")["services"].items():
        kind = service["image"].removeprefix("dualmap/")
        if kind in SETTINGS:
            loaded = load_settings(SETTINGS[kind], kind, dict(service.get("environment", {})))
            # A pool serves one model, and the simulated engines serve another than vLLM.
            assert loaded.settings.pool == ("vllm" if name.startswith("vllm") else "demo")
