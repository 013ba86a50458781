"""Settings from defaults, variables and flags; what is unknown or wrong names itself."""

from typing import Any

import msgspec
import pytest

from dualmap.queue_order import ORDERS
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.errors import SettingsError
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings


def router(environ: dict[str, str], **flags: Any) -> RouterSettings:
    return load_settings(RouterSettings, "router", environ, flags).settings


def test_defaults_alone() -> None:
    loaded = load_settings(RouterSettings, "router", {"PATH": "/bin", "HOME": "/"})
    assert loaded.settings == RouterSettings()
    assert set(loaded.origins.values()) == {"default"}


def test_later_sources_win_and_are_named() -> None:
    environ = {"DUALMAP_POOL": "a", "DUALMAP_ROUTER_POOL": "b", "DUALMAP_ROUTER_PORT": "81"}
    loaded = load_settings(RouterSettings, "router", environ, {"port": "82", "slo_ttft_s": 2, "policy": None})
    settings = loaded.settings
    assert (settings.pool, settings.port, settings.slo_ttft_s) == ("b", 82, 2.0)
    origins = {name: loaded.origins[name] for name in ("pool", "port", "slo_ttft_s", "policy")}
    assert origins == {
        "pool": "DUALMAP_ROUTER_POOL", "port": "--port", "slo_ttft_s": "--slo-ttft-s", "policy": "default",
    }  # fmt: skip


def test_what_other_services_read_is_theirs() -> None:
    environ = {"DUALMAP_WORKER_INSTANCE": "w", "DUALMAP_REBALANCER_ANYTHING": "x", "DUALMAP_POOL": "p"}
    assert router(environ).pool == "p"


def test_what_kubernetes_says_of_services_is_no_setting() -> None:
    environ = {
        f"DUALMAP{service}_{name}": value
        for service in ("", "_ROUTER", "_WORKER", "_REBALANCER", "_REDIS", "_ROUTER_METRICS")
        for name, value in {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "8000",
            "SERVICE_PORT_HTTP": "8000",
            "PORT": "tcp://10.0.0.1:8000",
            "PORT_8000_TCP": "tcp://10.0.0.1:8000",
            "PORT_8000_TCP_PROTO": "tcp",
            "PORT_8000_TCP_PORT": "8000",
            "PORT_8000_TCP_ADDR": "10.0.0.1",
            "PORT_53_UDP": "udp://10.0.0.1:53",
        }.items()
    }
    loaded = load_settings(RouterSettings, "router", environ)
    assert loaded.settings == RouterSettings()
    assert set(loaded.origins.values()) == {"default"}
    assert router({**environ, "DUALMAP_ROUTER_PORT": "81"}).port == 81


def test_lists_and_numbers() -> None:
    assert router({"DUALMAP_ROUTER_PASSTHROUGH": "/a,/b,"}).passthrough == ("/a", "/b")
    assert router({"DUALMAP_ROUTER_PASSTHROUGH": ""}).passthrough == ()
    assert router({"DUALMAP_ROUTER_REQUEST_TIMEOUT_S": "1e2"}).request_timeout_s == 100.0


@pytest.mark.parametrize(
    ("environ", "flags", "said"),
    [
        ({"DUALMAP_ROUTER_PROT": "1"}, {}, "DUALMAP_ROUTER_PROT; did you mean DUALMAP_ROUTER_PORT?"),
        ({"DUALMAP_REDIS_ULR": "1"}, {}, "DUALMAP_REDIS_ULR; did you mean DUALMAP_REDIS_URL?"),
        ({"DUALMAP_ZZZ": "1"}, {}, "unknown setting DUALMAP_ZZZ"),
        ({"DUALMAP_PORT": "1"}, {}, "unknown setting DUALMAP_PORT"),
        ({"DUALMAP_ROUTER_PROT": "tcp://10.0.0.1:1"}, {}, "DUALMAP_ROUTER_PROT; did you"),
        (
            {"DUALMAP_ROUTER_HOST": "tcp://10.0.0.1:1", "DUALMAP_HOST": "x"},
            {},
            "unknown setting DUALMAP_HOST",
        ),
        ({}, {"port": "tcp://10.0.0.1:1"}, "--port"),
        ({}, {"prot": "1"}, "'prot'; did you mean port?"),
        ({"DUALMAP_ROUTER_PORT": "http"}, {}, "DUALMAP_ROUTER_PORT"),
        ({"DUALMAP_ROUTER_PORT": "70000"}, {}, "got '70000'"),
        ({"DUALMAP_ROUTER_PORT": ""}, {}, "DUALMAP_ROUTER_PORT"),
        ({"DUALMAP_ROUTER_SLO_TTFT_S": "-1"}, {}, "DUALMAP_ROUTER_SLO_TTFT_S"),
        ({"DUALMAP_ROUTER_POLICY": "best"}, {}, "DUALMAP_ROUTER_POLICY"),
        ({"DUALMAP_REDIS_URL": "localhost"}, {}, "DUALMAP_REDIS_URL"),
        ({"DUALMAP_LOG_LEVEL": "loud"}, {}, "DUALMAP_LOG_LEVEL"),
        ({}, {"port": "-1"}, "--port"),
        ({}, {"slo_ttft_s": "nan"}, "--slo-ttft-s"),
        ({}, {"slo_ttft_s": "inf"}, "--slo-ttft-s"),
        ({}, {"max_attempts": "0"}, "--max-attempts"),
        ({}, {"processes": "2", "port": "0"}, "--processes needs a port"),
        ({"DUALMAP_TRACE_ENDPOINT": "jaeger:4317"}, {}, "DUALMAP_TRACE_ENDPOINT"),
        ({"DUALMAP_TRACE_SHARE": "10%"}, {}, "DUALMAP_TRACE_SHARE"),
    ],
)
def test_what_is_wrong_names_itself(environ: dict[str, str], flags: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        router(environ, **flags)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "service"), [(WorkerSettings, "worker"), (RebalancerSettings, "rebalancer")]
)
def test_the_queue_order_is_one_of_the_known(kind: type[SharedSettings], service: str) -> None:
    variable = f"DUALMAP_{service.upper()}_ORDER"
    for name in ORDERS:
        assert load_settings(kind, service, {variable: name}).rows()
    with pytest.raises(SettingsError, match=variable):
        load_settings(kind, service, {variable: "lifo"})


def test_tenants_take_turns_in_both_services_unless_told_otherwise() -> None:
    assert WorkerSettings().order_rule().tenant_fairness and RebalancerSettings().rule().order.tenant_fairness
    assert not WorkerSettings(tenant_fairness=False).order_rule().tenant_fairness
    assert not RebalancerSettings(tenant_fairness=False).rule().order.tenant_fairness


def test_secrets_are_masked() -> None:
    environ = {"DUALMAP_REDIS_URL": "rediss://me:pass@host:1/0", "DUALMAP_ROUTER_HASH_SECRET": "s3"}
    rows = {name: value for name, value, _ in load_settings(RouterSettings, "router", environ).rows()}
    assert rows["redis_url"] == "rediss://***@host:1/0"
    assert rows["hash_secret"] == "(set)"
    environ = {"DUALMAP_REDIS_URL": "redis://host:1/0?password=pass", "DUALMAP_REDIS_SENTINEL_PASSWORD": "p"}
    rows = {name: value for name, value, _ in load_settings(RouterSettings, "router", environ).rows()}
    assert (rows["redis_url"], rows["redis_sentinel_password"]) == ("redis://host:1/0?password=***", "(set)")
    rows = {name: value for name, value, _ in load_settings(WorkerSettings, "worker", {}).rows()}
    assert rows["engine_api_key"] == "(not set)"
    assert rows["redis_url"] == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize("kind", [RouterSettings, WorkerSettings, RebalancerSettings])
def test_every_field_has_a_default_and_cannot_change(kind: type[SharedSettings]) -> None:
    settings = kind()
    for field in msgspec.structs.fields(kind):
        with pytest.raises(AttributeError):
            setattr(settings, field.name, None)
