"""deploy/kubernetes: valid by Kubernetes' own schemas, and every setting in it one that its service knows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
SETTINGS: dict[str, type[SharedSettings]] = {
    "router": RouterSettings,
    "worker": WorkerSettings,
    "rebalancer": RebalancerSettings,
}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{document['kind']}/{document['metadata']['name']}", document


ALL = dict(documents())


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("name", ALL)
def test_it_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(ALL[name], version, strict=True)


def test_kustomize_lists_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in FOLDER.iterdir())


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in ALL.values():
        if document["kind"] in ("Deployment", "StatefulSet"):
            for container in document["spec"]["template"]["spec"]["containers"]:
                yield container["name"], container


@pytest.mark.parametrize(("service", "container"), list(containers()))
def test_its_settings_are_settings(service: str, container: dict[str, Any]) -> None:
    environ = {entry["name"]: entry.get("value", "redis://from/0") for entry in container["env"]}
    loaded = load_settings(SETTINGS[service], service, environ)
    assert loaded.settings.pool == "llama"
    assert container["image"] == f"dualmap/{service}"


@pytest.mark.parametrize(("service", "container"), list(containers()))
def test_nothing_runs_as_root_or_can_write(service: str, container: dict[str, Any]) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_routers_ask_for_keys_that_are_mounted_as_a_folder() -> None:
    spec = ALL["Deployment/dualmap-router"]["spec"]["template"]["spec"]
    [router] = spec["containers"]
    [path] = [entry["value"] for entry in router["env"] if entry["name"] == "DUALMAP_ROUTER_API_KEYS_FILE"]
    [mount] = router["volumeMounts"]
    [volume] = spec["volumes"]
    assert Path(path).parent == Path(mount["mountPath"])
    # Kubernetes does not follow a change into a subPath.
    assert "subPath" not in mount
    assert (mount["name"], "secret" in volume) == (volume["name"], True)


def test_a_worker_may_drain_for_as_long_as_it_says() -> None:
    spec = ALL["StatefulSet/dualmap-instance"]["spec"]["template"]["spec"]
    [worker] = spec["containers"]
    [drain_s] = [entry["value"] for entry in worker["env"] if entry["name"] == "DUALMAP_WORKER_DRAIN_S"]
    assert spec["terminationGracePeriodSeconds"] >= float(drain_s) + 20
