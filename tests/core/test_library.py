"""docs/library.md: its names are the modules' public ones, its code runs, and so does the example around it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dualmap.types import Reason, Slo
from examples.embed_choice import Router

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "library.md").read_text()
API = {
    module: re.findall(r"`(\w+)`", names)
    for module, names in re.findall(r"^\| `(dualmap\.\w+)` \| ([^|]+) \|", TEXT, re.MULTILINE)
}


def public_names(module: ModuleType) -> set[str]:
    """What a module defines, or says that it exports, without an underscore."""
    exported = getattr(module, "__all__", None)
    if exported is not None:
        return set(exported)
    assert module.__file__ is not None
    found: set[str] = set()
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("module", API)
def test_the_list_is_what_the_module_offers(module: str) -> None:
    assert set(API[module]) == public_names(importlib.import_module(module))


def test_every_module_is_listed_or_said_to_be_internal() -> None:
    there = {path.stem for path in (ROOT / "dualmap").glob("[!_]*.py")} | {"queue_order"}
    listed = {module.rpartition(".")[2] for module in API}
    assert listed <= there
    internal = TEXT.partition("Modules that are not named (")[2].partition(":")[0]
    assert set(re.findall(r"`(\w+)`", internal)) == there - listed


def run(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_of_the_page_runs() -> None:
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    instance, reason, seconds, _, backup = run("-c", code).split()
    assert {instance, backup} < {"gpu-1", "gpu-2", "gpu-3"}
    assert instance != backup
    assert Reason(reason) == Reason.LOAD
    assert 0.1 < float(seconds) < 1.0


def test_the_example_keeps_each_conversation_where_its_cache_is() -> None:
    lines = run("examples/embed_choice.py").splitlines()
    conversations = [line for line in lines if line.startswith("conversation ")]
    assert len(conversations) == 12
    for line in conversations:
        instances, reasons = re.findall(r"gpu-\d", line), re.findall(r"\((\w+)\)", line)
        assert len(set(instances)) == 1
        assert reasons == ["load", "affinity", "affinity", "affinity"]
    assert int(lines[-1].rpartition(" ")[2].rstrip("%")) > 40


def test_the_examples_router_goes_elsewhere_when_its_candidates_are_late() -> None:
    router = Router([f"gpu-{number}" for number in range(6)], Slo(base_s=1.0))
    prompt = b"one and the same " * 2000
    tickets = [router.route(prompt) for _ in range(200)]
    assert tickets[0].decision.reason is Reason.LOAD
    assert Reason.AFFINITY in {ticket.decision.reason for ticket in tickets}
    assert Reason.ESCAPE in {ticket.decision.reason for ticket in tickets}
    # What was booked is given back, all of it.
    for ticket in tickets:
        router.first_token(ticket, 0.1)
    for instance in router.instances.values():
        assert sum(instance.booked_s.values()) == pytest.approx(0.0, abs=1e-9)
