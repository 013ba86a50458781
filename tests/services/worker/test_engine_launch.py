"""What is started for the arguments given, and what cannot be."""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualmap_service.errors import SettingsError
from dualmap_worker.engine_launch import EngineLaunch, resolve
from dualmap_worker.settings import WorkerSettings
from dualmap_worker.vllm_args import KvSockets

KV_5557 = '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557"}'


@pytest.fixture(autouse=True)
def sockets_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not `tmp_path`, which may be longer than a socket's path can be."""
    with tempfile.TemporaryDirectory(prefix="dm-") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield


def launch(*args: str, **fields: Any) -> EngineLaunch:
    return resolve(WorkerSettings(engine="vllm", engine_args=shlex.join(args), **fields))


def flag(found: EngineLaunch, name: str) -> str:
    [index] = [index for index, arg in enumerate(found.argv) if arg == name]
    return found.argv[index + 1]


def test_an_engine_that_runs_already() -> None:
    found = resolve(WorkerSettings(engine_url="http://gpu:1", engine_api_key="k"))
    assert found == EngineLaunch("http://gpu:1", api_key="k")
    assert not found.supervised
    kv = {"kv_events_url": "tcp://gpu:5557", "kv_replay_url": "tcp://gpu:5558"}
    assert resolve(WorkerSettings(**kv)).kv == KvSockets(("tcp://gpu:5557",), ("tcp://gpu:5558",))


def test_vllm_gets_the_flags_that_are_missing() -> None:
    found = launch("org/model", "--max-model-len", "4096")
    assert found.argv[:7] == (
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model", "--max-model-len", "4096",
    )  # fmt: skip
    port = flag(found, "--port")
    assert (flag(found, "--host"), found.url) == ("127.0.0.1", f"http://127.0.0.1:{port}")
    assert "--enable-prompt-tokens-details" in found.argv
    assert "--enable-request-id-headers" in found.argv
    assert found.prompt_details is True
    config = json.loads(flag(found, "--kv-events-config"))
    assert config["enable_kv_cache_events"] is True
    assert found.kv == KvSockets((config["endpoint"],), (config["replay_endpoint"],))
    assert found.folder is not None
    assert config["endpoint"] == f"ipc://{found.folder}/kv"
    # Other users must not read prompts there.
    assert found.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "args", [["vllm", "serve", "m"], ["serve", "m"], ["m"], ["--model", "m"], ["--model=m"]]
)
def test_the_model_as_vllm_serve_takes_it(args: list[str]) -> None:
    assert " ".join(launch(*args).argv[3:5]).replace("=", " ").startswith("--model m")


@pytest.mark.parametrize(
    ("args", "url"),
    [
        (["--port", "9000"], "http://127.0.0.1:9000"),
        (["--port=9000", "--host=0.0.0.0"], "http://127.0.0.1:9000"),
        (["--port", "9000", "--host", "10.0.0.7"], "http://10.0.0.7:9000"),
        (["--host", "::", "--port", "9000"], "http://[::1]:9000"),
        (["--host", "fd00::7", "--port", "9000"], "http://[fd00::7]:9000"),
        (["--port", "1", "--port", "9000"], "http://127.0.0.1:9000"),
    ],
)
def test_host_and_port_as_given(args: list[str], url: str) -> None:
    found = launch("m", *args)
    assert found.url == url
    assert sum(arg.startswith("--port") for arg in found.argv) == sum(a.startswith("--port") for a in args)


@pytest.mark.parametrize(
    ("given", "details"),
    [
        ("--enable-prompt-tokens-details", True),
        ("--enable_prompt_tokens_details", True),
        ("--no-enable-prompt-tokens-details", False),
    ],
)
def test_a_switch_that_is_given_is_left_alone(given: str, details: bool) -> None:
    found = launch("m", given)
    assert found.prompt_details is details
    assert [arg for arg in found.argv if "prompt" in arg] == [given]


@pytest.mark.parametrize(
    ("args", "kv"),
    [
        (["--kv-events-config", KV_5557], KvSockets(("tcp://127.0.0.1:5557",))),
        ([f"--kv_events_config={KV_5557}"], KvSockets(("tcp://127.0.0.1:5557",))),
        (["--kv-events-config", '{"enable_kv_cache_events": true}'], KvSockets(("tcp://127.0.0.1:5557",))),
        (
            ["--kv-events-config.enable_kv_cache_events", "true", "--kv-events-config.endpoint", "ipc:///run/kv",
             "--kv-events-config.replay_endpoint=tcp://0.0.0.0:5600", "--kv-events-config.topic", "t"],
            KvSockets(("ipc:///run/kv",), ("tcp://127.0.0.1:5600",), "t"),
        ),
        # vLLM connects to an address without a wildcard: there is nothing for others to connect to.
        (["--kv-events-config", '{"enable_kv_cache_events": true, "endpoint": "tcp://10.0.0.1:5"}'], KvSockets()),
        (["--kv-events-config", '{"enable_kv_cache_events": true, "endpoint": "tcp://*:0"}'], KvSockets()),
        (["--kv-events-config", '{"enable_kv_cache_events": true, "publisher": "null"}'], KvSockets()),
        (["--kv-events-config", "{}"], KvSockets()),
        (["-dp", "2", "--kv-events-config", KV_5557], KvSockets(("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5558"))),
        (["--data-parallel-rank=3", "--kv-events-config", KV_5557], KvSockets(("tcp://127.0.0.1:5560",))),
        (
            ["-dp=8", "-dpr", "4", "-dpl", "2", "--kv-events-config", KV_5557],
            KvSockets(("tcp://127.0.0.1:5561", "tcp://127.0.0.1:5562")),
        ),
    ],
)  # fmt: skip
def test_kv_events_where_they_were_asked_for(args: list[str], kv: KvSockets) -> None:
    found = launch("m", *args)
    assert found.kv == kv
    assert found.folder is None
    assert sum("events" in arg for arg in found.argv) == sum("events" in arg for arg in args)


@pytest.mark.parametrize(
    ("args", "first", "ranks"), [(["-dp", "3"], 0, 3), (["-dpn", "2", "-dp", "4"], 2, 1)]
)
def test_ranks_have_ports_of_their_own(args: list[str], first: int, ranks: int) -> None:
    found = launch("m", *args)
    config = json.loads(flag(found, "--kv-events-config"))
    base = int(config["endpoint"].removeprefix("tcp://*:"))
    assert found.kv.events == tuple(f"tcp://127.0.0.1:{base + first + n}" for n in range(ranks))
    assert len({*found.kv.events, *found.kv.replay}) == 2 * ranks


def test_the_key_is_not_on_the_command_line() -> None:
    found = launch("m", engine_api_key="secret")
    assert found.env["VLLM_API_KEY"] == found.api_key == "secret"
    assert "secret" not in found.argv
    assert launch("m", "--api-key", "theirs").api_key == "theirs"


def test_a_temporary_folder_that_is_too_deep_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(SettingsError, match="shorter TMPDIR"):
        launch("m")
    assert not list(deep.iterdir())


def test_another_python() -> None:
    assert launch("m", engine_python="/opt/vllm/bin/python").argv[0] == "/opt/vllm/bin/python"


def test_a_command_gets_a_free_port_or_listens_where_it_is_said_to() -> None:
    found = resolve(WorkerSettings(engine="command", engine_args="serve --at={port} '{}'"))
    port = found.url.removeprefix("http://127.0.0.1:")
    assert found.argv == ("serve", f"--at={port}", "{}")
    found = resolve(WorkerSettings(engine="command", engine_args="serve", engine_url="http://127.0.0.1:7"))
    assert (found.argv, found.url) == (("serve",), "http://127.0.0.1:7")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"engine": "url", "engine_args": "m"}, "need --engine vllm or --engine command"),
        ({"engine": "vllm"}, "behind --"),
        ({"engine": "command"}, "behind --"),
        ({"engine": "vllm", "engine_args": "'m"}, "--engine-args: No closing quotation"),
        ({"engine_args": "m", "engine_url": "http://gpu:1"}, "--engine-url http://gpu:1 names an engine that runs"),
        ({"engine_args": "m --model n"}, "two models, 'm' and --model 'n'"),
        ({"engine_args": "m", "kv_events_url": "tcp://gpu:1"}, "for engines that run already"),
        ({"engine_args": "m --port many"}, "--port takes a number from 1 to 65535, not 'many'"),
        ({"engine_args": "m -dp 0"}, "--data-parallel-size takes a number"),
        ({"engine_args": "m --headless"}, "--headless has no HTTP server"),
        ({"engine_args": "m --uds /run/s"}, "--uds hides it"),
        ({"engine_args": "m --ssl_certfile=c"}, "--ssl-certfile makes it speak TLS"),
        ({"engine_args": "m --kv-events-config {"}, "--kv-events-config is not JSON"),
        ({"engine_args": "m --kv-events-config []"}, "is not a JSON object"),
        (
            {"engine": "command", "engine_args": "x {port}", "engine_url": "http://127.0.0.1:7"},
            "contradicts {port}",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_started_names_itself(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        resolve(WorkerSettings(**{"engine": "vllm", **fields}))
