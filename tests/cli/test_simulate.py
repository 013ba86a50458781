import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dualmap_cli.__main__ import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["simulate", *map(str, arguments)], env={"COLUMNS": "220"})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    lines = [
        {"timestamp": at * 3000, "input_length": 20480, "output_length": 20,
         "hash_ids": [0, *range(at % 80 * 39 + 1, at % 80 * 39 + 40)]}
        for at in range(160)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_capacity_as_json_has_the_form_that_is_promised(trace: Path) -> None:
    result = run("--trace", trace, "--policy", "least-loaded,chwbl", "--instances", 8, "--kv-blocks", 840,
                 "--slo-s", 5, "--model", "serial", "--capacity", "--json", "--seeds", 2, "--jobs", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [(one["policy"], one["order"]) for one in results] == [("least-loaded", "fcfs"), ("chwbl", "fcfs")]
    for one in results:
        low, high = one["ci"]
        assert low <= one["capacity_req_s"] <= high
        assert len(one["per_seed"]) == 2
        at = one["at_capacity"]
        assert list(at["ttft_s"]) == ["p50", "p90", "p99", "p999"]
        for name in ("within_slo_share", "hit_share", "load_cv"):
            assert isinstance(at[name], float)
        for name in ("moves", "escapes", "preemptions"):
            assert isinstance(at[name], int)
        assert at["within_slo_share"] >= 0.9


def test_the_same_options_print_the_same_whatever_the_number_of_jobs(trace: Path) -> None:
    options = ("--trace", trace, "--policy", "dualmap,power-of-two", "--rate", "3,6", "--seed", 5, "--seeds", 2,
               "--routers", 4, "--noise", 0.3, "--sync-s", 1, "--json")  # fmt: skip
    first = run(*options, "--jobs", 1)
    assert first.exit_code == 0, first.output
    assert run(*options, "--jobs", 1).stdout == first.stdout
    assert run(*options, "--jobs", 2).stdout == first.stdout
    results = json.loads(first.stdout)["results"]
    assert [(one["policy"], one["rate_req_s"], one["seed"]) for one in results][:3] == [
        ("dualmap", 3.0, 5), ("dualmap", 3.0, 6), ("dualmap", 6.0, 5),
    ]  # fmt: skip


def test_a_run_is_told_to_people() -> None:
    result = run("--workload", "tenants", "--requests", 120, "--rate", 4, "--policy", "dualmap,pool-fcfs")
    assert result.exit_code == 0, result.output
    for words in ("within SLO", "of ideal", "Slowdown by prompt tokens", "Slowdown by tenant", "TTFT within 5 s",
                  "1 seed", "took", "At 4.00 requests/s"):  # fmt: skip
        assert words in result.stdout


def test_a_comparison_takes_several_of_everything(tmp_path: Path) -> None:
    result = run("--workload", "unique,chat", "--requests", 100, "--instances", "2,4", "--slo-s", 2, "--compare",
                 "--policy", "dualmap,least-loaded", "--slo-per-1k-s", 0.5, "--rate", 3,
                 "--report", tmp_path / "out", "--jobs", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "chat, 4 instances, TTFT within 2 s + 0.5 s per 1,000 tokens" in result.stdout
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "out").glob("*.png"))) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to simulate: --trace FILE, or --workload"),
        (["--workload", "none"], "Invalid value for --workload: 'none' is not one of chat"),
        (["--trace", "/none"], "Invalid value for --trace: /none"),
        (["--trace", "/none", "--workload", "chat"], "--trace excludes --workload"),
        (["--workload", "chat", "--set", "x=1"], "Invalid value for --set: chat has no setting 'x'"),
        (
            ["--workload", "chat", "--change", "gone"],
            "Invalid value for --change: 'gone' is not like lose:0@600",
        ),
        (
            ["--workload", "chat", "--adapter", "fr"],
            "Invalid value for --adapter: 'fr' is not like NAME=0,1",
        ),
        (
            ["--workload", "chat", "--adapter", "fr=0,8"],
            "Invalid value for --adapter: there is no instance 8 of 8; they count from 0",
        ),
        (
            ["--workload", "chat", "--change", "lose:8@30"],
            "Invalid value for --change: there is no instance 8 of 8; they count from 0",
        ),
        (["--workload", "chat", "--set", "x"], "Invalid value for --set: it takes NAME=NUMBER"),
        (
            ["--workload", "chat", "--policy", "fast"],
            "Invalid value for --policy: 'fast' is not one of dualmap",
        ),
        (["--workload", "chat", "--order", "lifo"], "Invalid value for --order: 'lifo' is not one of"),
        (["--workload", "chat", "--rate", "x"], "Invalid value for --rate: it takes numbers"),
        (["--workload", "chat", "--rate", "1,0"], "Invalid value for --rate: 0 is not above 0"),
        (["--workload", "chat", "--rate", "nan"], "Invalid value for --rate: nan is not above 0"),
        (["--workload", "chat", "--rate", "1", "--capacity"], "--capacity searches the rate"),
        (
            ["--workload", "chat", "--instances", "1.5"],
            "Invalid value for --instances: 1.5 is not a whole number",
        ),
        (["--workload", "chat", "--instances", "2,4"], "add --compare"),
        (
            ["--workload", "chat", "--kv-blocks", "2"],
            "Invalid value for --kv-blocks: the longest prompt of chat",
        ),
        (["--workload", "chat", "--slo-s", "-1"], "Invalid value for --slo-s"),
        (["--workload", "chat", "--model", "gpu"], "Invalid value for --model"),
        (["--workload", "chat", "--noise", "1.5"], "Invalid value for '--noise'"),
        (["--workload", "chat", "--share", "1"], "Invalid value for '--share'"),
        (["--workload", "chat", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["--workload", "chat", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_a_bad_option_is_named(options: list[str], message: str) -> None:
    result = run(*options, "--requests", 50)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
