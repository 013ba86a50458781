"""Flags made from settings: each field has one, with its docstring, and a wrong value is one line."""

import logging
from collections.abc import Iterator

import click
import msgspec
import pytest
from click.testing import CliRunner

from dualmap_cli.commands.rebalancer import rebalancer
from dualmap_cli.settings_options import Flags, prepare, settings_options
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_service.settings import Positive, SharedSettings


class Toy(SharedSettings, frozen=True, kw_only=True):
    period_s: Positive = 0.5
    """How often, over
    two lines."""
    names: tuple[str, ...] = ()
    """Some names."""
    url: str
    """Where."""


@click.command()
@settings_options(Toy, "worker")
@click.option("--more", default="x")
def toy(flags: Flags, more: str) -> None:
    settings = prepare(Toy, "worker", flags)
    click.echo(f"{settings.period_s} {settings.names} {settings.url} {settings.pool} {more}")


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_flags_become_settings() -> None:
    got = CliRunner().invoke(toy, ["--period-s", "2", "--names", "a,b", "--url", "u", "--more", "y"])
    assert got.output == "2.0 ('a', 'b') u default y\n"


def test_the_environment_is_read_and_flags_win() -> None:
    env = {"DUALMAP_WORKER_PERIOD_S": "3", "DUALMAP_POOL": "p", "DUALMAP_WORKER_URL": "env"}
    got = CliRunner().invoke(toy, ["--url", "flag"], env=env)
    assert got.output == "3.0 () flag p x\n"


def test_help_says_what_a_field_is() -> None:
    text = " ".join(CliRunner().invoke(toy, ["--help"]).output.split())
    assert "--period-s NUMBER How often, over two lines. [default: 0.5; env: DUALMAP_WORKER_PERIOD_S]" in text
    assert "--url TEXT Where. [required; env: DUALMAP_WORKER_URL]" in text
    assert "env: DUALMAP_POOL]" in text


@pytest.mark.parametrize("flags", [["--period-s", "0"], ["--period-s", "soon"]])
def test_a_value_without_meaning_is_one_line(flags: list[str]) -> None:
    got = CliRunner().invoke(toy, ["--url", "u", *flags])
    assert got.exit_code == 2
    assert got.output.count("\n") == 1
    assert "--period-s" in got.output


def test_the_rebalancer_has_a_flag_per_setting() -> None:
    text = CliRunner().invoke(rebalancer, ["--help"]).output
    for field in msgspec.structs.fields(RebalancerSettings):
        assert "--" + field.name.replace("_", "-") in text
    got = CliRunner().invoke(rebalancer, ["--renew-s", "2.9"])
    assert (got.exit_code, got.output.count("\n")) == (2, 1)
