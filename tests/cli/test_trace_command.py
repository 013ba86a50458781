import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dualmap_cli.__main__ import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["trace", *map(str, arguments)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    system = {"role": "system", "content": "be brief. " * 1000}
    with path.open("w") as file:
        for index in range(20):
            messages = [system, {"role": "user", "content": f"question {index}"}]
            body = {"model": f"m{index % 2}", "messages": messages}
            usage = {"prompt_tokens": 2000, "completion_tokens": 9}
            file.write(
                json.dumps({"request": body, "ts": 1_700_000_000.5 + index * 1.3, "usage": usage}) + "\n"
            )
    return path


def test_a_log_is_imported_and_described(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    result = run("import", log, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: 20 requests over 25 s, read as openai" in result.output
    assert "several models (m0 10, m1 10)" in result.output
    assert "a token takes 5.01 bytes here, not 4" in result.output
    assert "be brief" not in out.read_text()

    result = run("describe", out, "--instances", 2, "--kv-blocks", 10)
    assert result.exit_code == 0, result.output
    for words in ("20 over 25 s", "gap variation 0.00", "pool's size (20)", "over 2/2", "Affinity "):
        assert words in result.output

    result = run("describe", out, "--json")
    figures = json.loads(result.output)
    assert (figures["requests"], figures["input_tokens"]["mean"]) == (20, 2000)
    assert figures["ideal"]["block_share"] == 18 * 3 / (20 * 4)
    assert figures["pool"] == {"instances": 8, "kv_blocks": 840, "slo_s": 5.0}
    assert figures["verdict"].startswith("Affinity can pay")


def test_an_import_can_be_reported_as_json(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    result = run("import", log, "-o", out, "--model", "m1", "--salt", "s", "--bytes-per-token", 5, "--json")
    assert json.loads(result.output)["models"] == {"m1": 10}
    before = out.read_bytes()
    run("import", log, "-o", out, "--model", "m1", "--salt", "s", "--bytes-per-token", 5)
    assert out.read_bytes() == before
    run("import", log, "-o", out, "--model", "m1", "--bytes-per-token", 5)
    assert out.read_bytes() != before


def test_bad_lines_end_it_with_two_unless_skipped(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.jsonl"
    with log.open("a") as file:
        file.write("{\n")
    result = run("import", log, "-o", out)
    assert result.exit_code == 2
    assert f"{log}:21: " in result.output
    assert not out.exists()
    result = run("import", log, "-o", out, "--skip-bad")
    assert result.exit_code == 0
    assert "1 bad lines skipped" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "/none", "-o", "/tmp/x"], "/none: No such file"),
        (["import", "/none", "-o", "/tmp/x", "--format", "xml"], "Invalid value for '--format'"),
        (["import", "/none", "-o", "/tmp/x", "--bytes-per-token", "0"], "bytes per token must be"),
        (["import", "/none"], "Missing option '-o'"),
        (["describe", "/none"], "/none: No such file"),
        (["describe", "/dev/null"], "/dev/null: there is no request to describe"),
        (["describe", "/dev/null", "--instances", "0"], "Invalid value for '--instances'"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
