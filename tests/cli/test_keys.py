"""`dualmap keys`: a key that is printed once, and a file that routers take."""

import json
import re
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dualmap_cli.commands.keys import keys
from dualmap_router.api_keys import Keyring, read_entries


def run(*args: object) -> Result:
    return CliRunner().invoke(keys, [str(arg) for arg in args])


def ring(path: Path) -> Keyring:
    return Keyring(read_entries(path.read_bytes()))


def test_a_new_key_is_alone_on_standard_output_and_its_entry_can_be_pasted(tmp_path: Path) -> None:
    got = run("new", "--name", "acme-prod", "--tenant", "acme", "--requests-per-s", 50, "--concurrency", 7)
    assert got.exit_code == 0, got.output
    key = got.stdout.strip()
    assert key.startswith("dualmap-")
    assert "\n" not in key
    assert key not in got.stderr
    entry = json.loads(got.stderr[got.stderr.index("{") : got.stderr.rindex("}") + 1])
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    found = ring(tmp_path / "keys.json").find(key)
    assert found is not None
    assert (found.caller.name, found.caller.tenant, found.caller.admin) == ("acme-prod", "acme", False)


def test_a_file_grows_and_keeps_no_key(tmp_path: Path) -> None:
    path, made = tmp_path / "keys.json", []
    for number in range(3):
        got = run("new", "--name", f"k{number}", "--tenant", "acme", "--admin", "--file", path)
        assert got.exit_code == 0, got.output
        made.append(got.stdout.strip())
    assert len(ring(path)) == 3
    assert all(ring(path).find(key) is not None for key in made)
    assert not any(key in path.read_text() for key in made)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]
    path.chmod(0o600)
    assert run("revoke", "--name", "k1", "--file", path).exit_code == 0
    assert [ring(path).find(key) is not None for key in made] == [True, False, True]
    assert path.stat().st_mode & 0o777 == 0o600
    listed = run("list", "--file", path).output
    assert "k0" in listed
    assert "k1" not in listed


def test_the_most_urgent_priority_of_a_key_is_in_the_file_and_in_the_list(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    asked = {"usual": (), "urgent": ("--priority", -5), "operator": ("--admin",)}
    shown = {}
    for name, options in asked.items():
        got = run("new", "--name", name, "--tenant", "acme", *options, "--file", path)
        assert got.exit_code == 0, got.output
        shown[name] = ring(path).find(got.stdout.strip())
    assert {name: key and key.caller.most_urgent for name, key in shown.items()} == {
        "usual": 0,
        "urgent": -5,
        "operator": None,
    }
    assert [entry.get("priority") for entry in json.loads(path.read_text())["keys"]] == [None, -5, None]
    rows = [re.findall(r"[\w-]+", line) for line in run("list", "--file", path).output.splitlines()]
    assert [row for row in rows if row and row[0] in asked] == [
        ["usual", "acme", "0"],
        ["urgent", "acme", "-5"],
        ["operator", "acme", "any", "yes"],
    ]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "real" / "keys.json")
    assert run("new", "--name", "a", "--tenant", "t", "--file", link).exit_code == 0
    assert link.is_symlink()
    assert len(ring(link)) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--name", "", "--tenant", "t"), "$.name"),
        (("--name", "k", "--tenant", "a/b"), "$.tenant"),
        (("--name", "k", "--tenant", "t", "--expires", "soon"), "$.expires"),
        (("--name", "k", "--tenant", "t", "--requests-per-s", 0), "$.requests_per_s"),
        (("--name", "k", "--tenant", "t", "--concurrency", 0), "$.concurrency"),
        (("--name", "k", "--tenant", "t", "--priority", 1), "$.priority"),
        (("--name", "k", "--tenant", "t", "--priority", -1, "--admin"), "administrator"),
    ],
)
def test_what_is_no_key(args: tuple[object, ...], said: str, tmp_path: Path) -> None:
    got = run("new", *args, "--file", tmp_path / "keys.json")
    assert (got.exit_code, got.stdout) == (1, "")
    assert said in got.stderr
    assert not (tmp_path / "keys.json").exists()


def test_what_would_break_a_file_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    run("new", "--name", "a", "--tenant", "acme", "--file", path)
    before = path.read_bytes()
    for args, said in (
        (("new", "--name", "a", "--tenant", "other"), "two keys are named 'a'"),
        (("new", "--name", "b", "--tenant", "acme", "--concurrency", 1), "different limits"),
        (("revoke", "--name", "b"), "no key named 'b'"),
    ):
        got = run(*args, "--file", path)
        assert (got.exit_code, got.stdout) == (1, "")
        assert said in got.stderr
    assert path.read_bytes() == before
    path.write_text("{}")
    assert str(path) in run("new", "--name", "b", "--tenant", "t", "--file", path).stderr
    assert "No such file" in run("list", "--file", tmp_path / "none.json").stderr


def test_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    changes = [
        threading.Thread(target=run, args=("new", "--name", f"k{number}", "--tenant", "t", "--file", path))
        for number in range(8)
    ]
    for change in changes:
        change.start()
    for change in changes:
        change.join()
    assert len(ring(path)) == 8
