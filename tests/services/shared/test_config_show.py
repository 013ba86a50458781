"""`dualmap config show`."""

import json

import pytest
from click.testing import CliRunner

from dualmap_cli.commands.config import config


def test_all_services_with_origins() -> None:
    env = {"DUALMAP_POOL": "p", "DUALMAP_ROUTER_PORT": "9", "DUALMAP_REDIS_URL": "redis://u:hidden@h:1/0"}
    got = CliRunner().invoke(config, ["show", "--json"], env=env)
    assert got.exit_code == 0, got.output
    shown = json.loads(got.output)
    assert set(shown) == {"router", "worker", "rebalancer"}
    assert shown["router"]["port"] == {"value": "9", "from": "DUALMAP_ROUTER_PORT"}
    assert shown["worker"]["pool"] == {"value": "p", "from": "DUALMAP_POOL"}
    assert shown["rebalancer"]["log_level"] == {"value": "info", "from": "default"}
    assert "hidden" not in got.output


def test_one_service_as_a_table() -> None:
    got = CliRunner().invoke(config, ["show", "worker"], env={"DUALMAP_WORKER_INSTANCE": "mine"})
    assert got.exit_code == 0
    assert "DUALMAP_WORKER_INSTANCE" in got.output
    assert "lambda_own" not in got.output


def test_what_is_wrong_is_one_line() -> None:
    got = CliRunner().invoke(config, ["show"], env={"DUALMAP_ROUTER_PROT": "9"})
    assert (got.exit_code, got.output.count("\n")) == (2, 1)
    assert "did you mean DUALMAP_ROUTER_PORT?" in got.output


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("DUALMAP_REDIS_URL", "redis://u:hid:den@h:1/0", "redis://***@h:1/0"),
        ("DUALMAP_REDIS_URL", "rediss://u:hidden@x@h:1/0", "rediss://***@h:1/0"),
        ("DUALMAP_REDIS_URL", "redis://h:1/0?password=hidden&db=2", "redis://h:1/0?password=***&db=2"),
        ("DUALMAP_TRACE_ENDPOINT", "https://u:hidden@c:4317", "https://***@c:4317"),
        ("DUALMAP_ROUTER_HASH_SECRET", "hidden", "(set)"),
        ("DUALMAP_ROUTER_API_KEYS_FILE", "/etc/keys.json", "/etc/keys.json"),
        ("DUALMAP_WORKER_ENGINE_API_KEY", "hidden", "(set)"),
        ("DUALMAP_WORKER_ENGINE_ARGS", "m --api-key hidden --x 1", "m --api-key *** --x 1"),
        ("DUALMAP_WORKER_STEP_TOKENS", "4096", "4096"),
    ],
)
def test_no_secret_is_shown_and_nothing_else_is_hidden(variable: str, value: str, shown: str) -> None:
    got = CliRunner().invoke(config, ["show", "--json"], env={variable: value})
    assert got.exit_code == 0, got.output
    values = [
        field["value"]
        for service in json.loads(got.output).values()
        for field in service.values()
        if field["from"] == variable
    ]
    assert set(values) == {shown}
    assert "hidden" not in got.output


@pytest.mark.parametrize("value", ["u:hidden@h:1", "http://u:hidden@h:1", "hidden:x@h?password=hidden"])
def test_what_is_wrong_is_said_without_its_secret(value: str) -> None:
    got = CliRunner().invoke(config, ["show"], env={"DUALMAP_REDIS_URL": value})
    assert got.exit_code == 2
    assert "DUALMAP_REDIS_URL" in got.output
    assert "hidden" not in got.output
