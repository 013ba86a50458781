"""`dualmap worker` and what stands behind `--`."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from dualmap_cli.commands.worker import worker
from dualmap_worker.engine_launch import EngineLaunch


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[EngineLaunch]:
    """What workers would start; none is run."""
    found: list[EngineLaunch] = []

    def run(_: Any, __: Any, launch: EngineLaunch) -> None:
        found.append(launch)

    monkeypatch.setattr("dualmap_worker.app.run", run)
    monkeypatch.setattr("dualmap_cli.commands.worker.run_and_exit", lambda main: main(None))
    return found


SERVE = ["serve", "--name", "two words", "-x"]


def test_what_is_behind_the_dashes_is_passed_on_as_it_is(launched: list[EngineLaunch]) -> None:
    got = CliRunner().invoke(worker, ["--engine", "command", "--pool", "p", "--", *SERVE])
    assert (got.exit_code, [list(launch.argv) for launch in launched]) == (0, [SERVE]), got.output


def test_the_same_from_the_environment_and_flags_win(launched: list[EngineLaunch]) -> None:
    env = {
        "DUALMAP_WORKER_ENGINE": "command",
        "DUALMAP_WORKER_ENGINE_ARGS": "serve --name 'two words' -x",
    }
    CliRunner().invoke(worker, [], env=env)
    CliRunner().invoke(worker, ["--", "other"], env=env)
    assert [list(launch.argv) for launch in launched] == [SERVE, ["other"]]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--", "model"], "need --engine vllm or --engine command"),
        (["--engine", "vllm"], "needs what is to be started, behind --"),
        (["--engine", "vllm", "--engine-args", "a", "--", "b"], "say them once"),
        (["--engine", "trtllm"], "Invalid enum value 'trtllm'"),
        (["--engine", "vllm", "--", "m", "--headless"], "--headless has no HTTP server"),
    ],
)
def test_what_has_no_meaning_is_one_line(args: list[str], says: str) -> None:
    got = CliRunner().invoke(worker, args)
    assert (got.exit_code, got.output.count("\n")) == (2, 1), got.output
    assert says in got.output


def test_help_names_what_can_be_started() -> None:
    text = " ".join(CliRunner().invoke(worker, ["--help"]).output.split())
    assert "--engine url|vllm|command" in text
    assert "[-- ENGINE ARGUMENTS]" in text
