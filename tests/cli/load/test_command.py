import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dualmap_cli.commands.load import load
from tests.cli.load.endpoint import Endpoint, serve


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint on another thread's loop: the command runs its own."""
    started: list[tuple[Endpoint, asyncio.Event, asyncio.AbstractEventLoop]] = []
    ready = threading.Event()

    async def main() -> None:
        async with serve() as listening:
            done = asyncio.Event()
            started.append((listening, done, asyncio.get_running_loop()))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    listening, done, loop = started[0]
    yield listening
    loop.call_soon_threadsafe(done.set)
    thread.join()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(load, arguments)


def test_a_built_in_workload_as_json_and_records(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    settings = ("--set", "system_tokens=64", "--set", "skew=0")
    size = ("--requests", "20", "--rate", "100", "--time-scale", "5")
    result = run("--url", endpoint.url, *size, *settings, "--json", "--out", str(out))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["sent"], report["answered"], report["errors"]) == (20, 20, 0)
    assert "20 requests over" in result.stderr
    assert endpoint.bodies[0]["model"] == "served-model"
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 20
    assert records[0]["instance"] == "i-1"
    assert "finished" in records[0]


def test_a_trace_as_a_table(endpoint: Endpoint, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    line = {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [0, 1]}
    trace.write_text(f"{json.dumps(line)}\n" * 3)
    result = run("--url", endpoint.url, "--trace", str(trace), "--time-scale", "30", "--no-stream")
    assert result.exit_code == 0, result.output
    assert "within SLO" in result.stdout
    assert "i-1" in result.stdout
    assert endpoint.bodies[0]["stream"] is False


def test_failures_exit_with_one(endpoint: Endpoint) -> None:
    wrong_path = f"{endpoint.url}/elsewhere"
    result = run("--url", wrong_path, "--model", "m", "--requests", "2", "--rate", "50")
    assert result.exit_code == 1
    assert "http_404 2" in result.stdout


def test_workloads_are_listed() -> None:
    result = run("--list-workloads")
    assert result.exit_code == 0
    for name in ("chat", "agents", "documents", "unique", "hotspot", "system-prompts", "system_prompts=24"):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--url"),
        (["--url", "nowhere"], "not an http(s) URL: 'nowhere'"),
        (["--url", "http://x", "--model", "m", "--workload", "nope"], "no workload is called 'nope'"),
        (["--url", "http://x", "--model", "m", "--rate", "0"], "rate must be above 0"),
        (["--url", "http://x", "--model", "m", "--time-scale", "-1"], "time_scale must be above 0"),
        (["--url", "http://x", "--model", "m", "--set", "size"], "--set takes NAME=NUMBER"),
        (["--url", "http://x", "--model", "m", "--set", "size=1"], "chat has no setting 'size'"),
        (["--url", "http://x", "--model", "m", "--hotspot", "2"], "share <= 1"),
        (["--url", "http://x", "--model", "m", "--trace", "/none.jsonl"], "/none.jsonl: No such file"),
        (["--url", "http://x", "--trace", "t", "--workload", "chat"], "--trace excludes --workload"),
        (["--url", "http://x", "--trace", "t", "--pattern", "bursts"], "--trace excludes"),
        (["--url", "http://127.0.0.1:9"], "cannot ask http://127.0.0.1:9 for its model"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


async def test_ctrl_c_prints_the_report_so_far() -> None:
    async with serve() as endpoint:
        code = "from dualmap_cli.commands.load import load; load()"
        arguments = ["--url", endpoint.url, "--rate", "5", "--duration", "3600", "--json"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await endpoint.arrived.wait()
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert report["sent"] == report["answered"] + report["unfinished"] >= 1
