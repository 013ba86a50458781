"""The demo as a person and as a program meet it: a real run, smaller than the default."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONTRACT = {
    "sent", "answered", "errors", "duplicates", "moves", "escapes", "within_slo_share", "ttft_s", "ttft_error_s",
    "cached_token_share", "per_instance", "leftover",
}  # fmt: skip


def run_demo(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dualmap_cli", "demo", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def as_json(*args: str) -> dict[str, Any]:
    done = run_demo("--json", *args)
    assert done.returncode == 0, done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_the_summary_for_programs_keeps_its_contract() -> None:
    summary = as_json("--requests", "120", "--rate", "6", "--instances", "2", "--no-hotspot")
    assert summary.keys() >= CONTRACT
    assert summary["sent"] == summary["answered"] == 120
    assert summary["errors"] == summary["duplicates"] == 0
    assert set(summary["leftover"]) >= {"charges_s", "queued", "sessions", "buffers"}
    assert not any(summary["leftover"].values())
    assert summary["ttft_s"].keys() >= {"p50", "p90", "p99"}
    assert sum(row["requests"] for row in summary["per_instance"]) == 120


def test_the_summary_for_people_says_that_the_books_balance() -> None:
    done = run_demo("--requests", "40", "--rate", "10", "--instances", "2", "--routers", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sound: 40 of 40" in done.stdout
    assert "10 times slower" in done.stderr


def test_a_trace_goes_through_the_live_system(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {
            "timestamp": 3000 * (i // 8),
            "input_length": 1450 + i,
            "output_length": 6,
            "hash_ids": [0, i % 5, 100 + i],
        }
        for i in range(48)
    ]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    summary = as_json("--trace", str(trace), "--requests", "48", "--rate", "20", "--instances", "2")
    assert summary["sent"] == summary["answered"] == 48
    assert summary["cached_token_share"] > 0.2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--policy", "magic"], "magic"),
        (["--requests", "0"], "requests"),
        (["--trace", "/nowhere/at/all"], "nowhere"),
        (["--rate", "-1"], "rate"),
    ],
)
def test_bad_options_name_themselves(args: list[str], says: str) -> None:
    done = run_demo(*args)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_malformed_trace_names_file_and_line(tmp_path: Path) -> None:
    trace = tmp_path / "broken.jsonl"
    trace.write_text('{"timestamp": 0}\n')
    done = run_demo("--trace", str(trace))
    assert done.returncode == 1
    assert "broken.jsonl:1" in done.stderr
