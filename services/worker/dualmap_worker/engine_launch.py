"""Which engine a worker stands beside: one that runs already, or one that it starts, and how."""

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dualmap_service.errors import SettingsError
from dualmap_service.ports import free_ports
from dualmap_worker.settings import DEFAULT_ENGINE_URL, WorkerSettings
from dualmap_worker.vllm_args import (
    KV_EVENTS,
    PROMPT_DETAILS,
    REQUEST_ID_HEADERS,
    KvSockets,
    VllmArgs,
    given_sockets,
    own_config,
)

_MODULE = "vllm.entrypoints.openai.api_server"
_PORT = "{port}"
_MAX_FOLDER_BYTES = 90
"""A Unix socket's whole path has 107."""
_REACHED = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class EngineLaunch:
    """How an engine is started, and where it is then."""

    url: str
    argv: tuple[str, ...] = ()
    """Empty for an engine that runs already."""
    env: Mapping[str, str] = field(default_factory=dict)
    api_key: str = ""
    kv: KvSockets = field(default_factory=KvSockets)
    prompt_details: bool | None = None
    """Whether it was told to say how much of a prompt was cached; None where nobody knows."""
    folder: Path | None = None
    """Made for its sockets; to be removed with it."""

    @property
    def supervised(self) -> bool:
        """Whether the worker starts it."""
        return bool(self.argv)


def resolve(settings: WorkerSettings) -> EngineLaunch:
    """What the settings ask for, with every port chosen; SettingsError where they contradict each other."""
    try:
        args = shlex.split(settings.engine_args)
    except ValueError as exc:
        raise SettingsError(f"--engine-args: {exc} (got {settings.engine_args!r})") from exc
    if settings.engine == "url":
        if args:
            raise SettingsError(
                f"arguments for an engine ({args[0]} ...) need --engine vllm or --engine command"
            )
        return EngineLaunch(settings.engine_url, api_key=settings.engine_api_key, kv=_said_sockets(settings))
    if not args:
        raise SettingsError(f"--engine {settings.engine} needs what is to be started, behind --")
    if settings.engine == "command":
        return _command(settings, args)
    return _vllm(settings, args)


def _command(settings: WorkerSettings, args: list[str]) -> EngineLaunch:
    """A whole command line; `{port}` in it stands for a free port, else it listens at the engine's URL."""
    url = settings.engine_url
    if any(_PORT in arg for arg in args):
        if url != DEFAULT_ENGINE_URL:
            raise SettingsError(f"--engine-url {url} contradicts {_PORT}, which takes a free port")
        port = free_ports()
        url, args = f"http://127.0.0.1:{port}", [arg.replace(_PORT, str(port)) for arg in args]
    return EngineLaunch(
        url, tuple(args), {"PYTHONUNBUFFERED": "1"}, settings.engine_api_key, _said_sockets(settings)
    )


def _said_sockets(settings: WorkerSettings) -> KvSockets:
    """Where the settings say that KV events are."""
    events, replay = settings.kv_events_url, settings.kv_replay_url
    return KvSockets((events,) if events else (), (replay,) if replay else ())


def _vllm(settings: WorkerSettings, args: list[str]) -> EngineLaunch:
    """vLLM's OpenAI server, with the flags that a worker needs unless they are given."""
    if settings.engine_url != DEFAULT_ENGINE_URL:
        raise SettingsError(
            f"--engine-url {settings.engine_url} names an engine that runs already, which --engine vllm starts: "
            "say --host and --port behind --"
        )
    if settings.kv_events_url or settings.kv_replay_url:
        raise SettingsError(
            "--kv-events-url and --kv-replay-url are for engines that run already: with --engine vllm the worker "
            "chooses, or reads --kv-events-config"
        )
    given = VllmArgs(args)
    host = given.value("--host")
    port = given.number("--port", 0, 1, 65535) or free_ports()
    added = [] if host is not None else ["--host", "127.0.0.1"]
    if given.value("--port") is None:
        added += ["--port", str(port)]
    added += [flag for flag in (PROMPT_DETAILS, REQUEST_ID_HEADERS) if given.says(flag) is None]
    folder, config = None, given.kv_config
    if config is None:
        folder = _private_folder() if given.ranks == range(1) else None
        config = own_config(given.ranks, folder)
        added += [KV_EVENTS, json.dumps(config)]
    env = {"PYTHONUNBUFFERED": "1"}
    if settings.engine_api_key:
        # Not as a flag, which everybody on the machine can read.
        env["VLLM_API_KEY"] = settings.engine_api_key
    python = settings.engine_python or sys.executable
    return EngineLaunch(
        url=f"http://{_url_host(host)}:{port}",
        argv=(python, "-m", _MODULE, *given.args, *added),
        env=env,
        api_key=settings.engine_api_key or given.value("--api-key") or "",
        kv=given_sockets(config, given.ranks),
        prompt_details=given.says(PROMPT_DETAILS) is not False,
        folder=folder,
    )


def _url_host(host: str | None) -> str:
    """How this machine reaches a server that listens on `host`."""
    host = host or ""
    return _REACHED.get(host) or (f"[{host}]" if ":" in host and not host.startswith("[") else host)


def _private_folder() -> Path:
    """For this user only: KV events hold prompts."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="dualmap-"))
    except OSError as exc:
        raise SettingsError(f"no folder for the engine's sockets: {exc}; set TMPDIR") from exc
    if len(bytes(folder)) > _MAX_FOLDER_BYTES:
        folder.rmdir()
        raise SettingsError(f"the path of {folder} is too long for sockets in it: set a shorter TMPDIR")
    return folder
