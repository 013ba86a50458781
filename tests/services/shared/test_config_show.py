"""`dualmap config show`."""

import json

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
