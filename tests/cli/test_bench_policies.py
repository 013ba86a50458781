"""`make bench-policies`: what it measures, and how its tables get into docs/results.md."""

from pathlib import Path

import pytest

from bench.marked import put
from bench.policies.__main__ import _names
from bench.policies.config import ClassesPart, Part, Scope, make_config
from dualmap_sim.study.subject import NAMES


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "results.md"
    path.write_text("# Results\n\nBefore.\n\n<!-- one -->\nold\n<!-- end of one -->\n\nAfter.\n")
    return path


def test_what_stands_between_the_marks_is_replaced_and_the_rest_is_left(page: Path) -> None:
    put(page, "one", r"new \1")
    put(page, "one", r"newer \1")
    assert page.read_text() == (
        "# Results\n\nBefore.\n\n<!-- one -->\nnewer \\1\n<!-- end of one -->\n\nAfter.\n"
    )


def test_what_has_no_marks_yet_comes_last(page: Path, tmp_path: Path) -> None:
    before = page.read_text()
    put(page, "two", "text")
    assert page.read_text() == f"{before}\n<!-- two -->\ntext\n<!-- end of two -->\n"
    fresh = tmp_path / "docs/fresh.md"
    put(fresh, "two", "text")
    assert fresh.read_text() == "<!-- two -->\ntext\n<!-- end of two -->\n"


def test_everything_runs_on_the_trace_and_on_agents_and_the_few_on_all_others() -> None:
    config = make_config(["conversation.jsonl", "other.jsonl"], Scope())
    parts = {part.key: part for part in config.parts}
    fixed, others = parts["fixed"], parts["others"]
    assert isinstance(fixed, Part) and isinstance(others, Part)
    assert [case.source.name for case, _ in fixed.cases] == ["conversation", "agents"]
    assert all([member.name for member in members] == list(NAMES) for _, members in fixed.cases)
    names = [case.source.name for case, _ in others.cases]
    assert names[0] == "other" and {"unique", "bursts", "diurnal", "drift", "tenants"} < set(names)
    assert all(
        {"dualmap", "least-loaded"} < {member.name for member in members} for _, members in others.cases
    )
    assert isinstance(parts["classes"], ClassesPart)
    assert config.seeds == (0, 1, 2)


def test_without_options_it_writes_the_page_itself() -> None:
    """As the command line gives them: an option that is not given is like the default."""
    assert Scope(workloads=_names(""), policies=_names(""), parts=_names("fixed,robust")).whole


def test_parts_of_tables_do_not_replace_them() -> None:
    assert Scope().whole and Scope(parts=("fixed",)).whole and Scope(plots=False).whole
    assert not Scope(seeds=1).whole and not Scope(workloads=("agents",)).whole
    assert not Scope(policies=("dualmap",)).whole and not Scope(quick=True).whole
