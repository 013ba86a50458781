"""Programs that some tests need of the machine: the one place where a test is skipped for want of them.

`@needs("chromium")` skips where there is none and says how to get it. Where the variable TESTS_SKIP_NOTHING is set, as
in CI, the test fails instead: nothing goes untested in silence there.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Literal

import pytest

from bench.page.chromium import find_chromium

Program = Literal["chromium", "curl", "docker compose", "prometheus", "promtool"]

NOTHING_IS_SKIPPED = bool(os.environ.get("TESTS_SKIP_NOTHING"))


def _compose_is_there() -> bool:
    command = ["docker", "compose", "version"]
    return (
        shutil.which("docker") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


_PROGRAMS: dict[Program, tuple[Callable[[], bool], str]] = {
    "chromium": (lambda: find_chromium() is not None, "apt-get install chromium"),
    "curl": (lambda: shutil.which("curl") is not None, "apt-get install curl"),
    "docker compose": (_compose_is_there, "install Docker's Compose plugin; no engine is needed"),
    "prometheus": (
        lambda: shutil.which("prometheus") is not None,
        "apt-get install --no-install-recommends prometheus",
    ),
    "promtool": (
        lambda: shutil.which("promtool") is not None,
        "apt-get install --no-install-recommends prometheus",
    ),
}


def needs(program: Program) -> pytest.MarkDecorator:
    """A mark for tests that cannot run without."""
    return pytest.mark.needs(program)


@cache
def lack(program: Program) -> str | None:
    """What is missing and how to get it; None where it is there."""
    is_there, how = _PROGRAMS[program]
    return None if is_there() else f"no {program} here: {how}"


def check(item: pytest.Item) -> None:
    """Skip a test that lacks something, or fail it where nothing is skipped."""
    for mark in item.iter_markers("needs"):
        missing = lack(mark.args[0])
        if missing and NOTHING_IS_SKIPPED:
            pytest.fail(missing, pytrace=False)
        if missing:
            pytest.skip(missing)
