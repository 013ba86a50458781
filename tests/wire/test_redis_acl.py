"""deploy/redis/users.acl allows each service what the functions that it calls do, and nothing else."""

import re
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACL = ROOT / "deploy/redis/users.acl"
CONNECTING = {"ping", "client|setname", "cluster|slots", "function|load", "fcall", "exists"}
_CALL = re.compile(r"\.(?:function|post|command)\(\s*\"(\w+)\"")


def _rules(user: str) -> list[str]:
    lines = (line.split() for line in ACL.read_text().splitlines())
    return next(words[2:] for words in lines if words[:2] == ["user", user])


def allowed(user: str) -> set[str]:
    """The commands that a user may send or have sent for it."""
    return {rule[1:] for rule in _rules(user) if rule.startswith("+")}


def _functions() -> dict[str, str]:
    source = resources.files("dualmap_wire").joinpath("redis_functions.lua").read_text()
    source = re.sub(r"--.*", "", source).partition("redis.register_function")[0]
    parts = re.split(r"^local function (\w+)", source, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands_of(function: str, functions: dict[str, str], seen: set[str]) -> set[str]:
    """The Redis commands that a function may come to."""
    if function in seen:
        return set()
    seen.add(function)
    body = functions[function]
    found = {name.lower() for name in re.findall(r"\bcall\('([A-Z]+)'", body)}
    for name in functions:
        if name != "call" and re.search(rf"(?<![.'\w]){name}\b(?!')", body):
            found |= commands_of(name, functions, seen)
    return found


def sent_by(*rooms: str) -> set[str]:
    """Functions and commands that a service's source names."""
    source = "".join(path.read_text() for room in rooms for path in (ROOT / "services").glob(room))
    return {name for name in _CALL.findall(source) if name not in ("FCALL", "PING")}


@pytest.mark.parametrize(
    ("service", "registry"),
    [("router", {"members"}), ("worker", {"register", "deregister"}), ("rebalancer", {"members"})],
)
def test_a_service_may_do_what_it_does_and_no_more(service: str, registry: set[str]) -> None:
    functions = _functions()
    sent = sent_by(f"{service}/dualmap_{service}/**/*.py") | registry
    expected = {name.lower() for name in sent if name not in functions}
    for name in sent & functions.keys():
        expected |= commands_of(name, functions, set())
    assert expected, sent
    assert allowed(f"dualmap-{service}") == expected | CONNECTING


def test_the_registrys_calls_are_known_here() -> None:
    assert sent_by("shared/dualmap_service/registry.py") == {"members", "register", "deregister"}


def test_nobody_else_and_nothing_else() -> None:
    lines = ACL.read_text().splitlines()
    assert lines[0] == "user default off"
    assert len(lines) == 5
    for line in lines[1:]:
        others = [word for word in line.split()[3:] if not word.startswith("+")]
        assert others[1:] == ["resetchannels", "~dm:*", "-@all"]
