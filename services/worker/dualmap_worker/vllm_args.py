"""A command line for vLLM: what it says already, and what a worker adds to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualmap_service.errors import SettingsError
from dualmap_service.ports import free_ports

PROMPT_DETAILS = "--enable-prompt-tokens-details"
REQUEST_ID_HEADERS = "--enable-request-id-headers"
KV_EVENTS = "--kv-events-config"
_SHORT = {
    "-dp": "--data-parallel-size",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpm": "--data-parallel-multi-port-external-lb",
}
_REFUSED = {
    "--headless": "has no HTTP server: run it by itself, and a worker beside the one that has",
    "--uds": "hides it behind a Unix socket; a worker reaches its engine by TCP",
    "--ssl-certfile": "makes it speak TLS; a worker speaks plain HTTP to the engine that it starts",
    "--data-parallel-multi-port-external-lb": "starts a server per rank: run one worker and one vLLM per rank",
}


@dataclass(frozen=True, slots=True)
class KvSockets:
    """Where a vLLM publishes KV events and replays them: ZeroMQ addresses to connect to, one per rank."""

    events: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    topic: str = ""


class VllmArgs:
    """The arguments of `vllm serve`, whose flags may be written with `_` and with `=`; the last one counts."""

    def __init__(self, args: Sequence[str]) -> None:
        args = list(args)
        for word in ("vllm", "serve"):
            if args[:1] == [word]:
                args = args[1:]
        positional = bool(args) and not args[0].startswith("-")
        # The module does not take `vllm serve`'s positional model.
        self.args = ["--model", *args] if positional else args
        self.flags = _flags(self.args[2:] if positional else self.args)
        if positional and "--model" in self.flags:
            raise SettingsError(
                f"--engine vllm: two models, {args[0]!r} and --model {self.flags['--model']!r}"
            )
        for flag, why in _REFUSED.items():
            if flag in self.flags:
                raise SettingsError(f"--engine vllm: {flag} {why}")

    def value(self, flag: str) -> str | None:
        """The value of a flag; None where it is not given."""
        return self.flags.get(flag)

    def says(self, flag: str) -> bool | None:
        """Whether a switch is on; None where it is not given either way."""
        given = [name for name in self.flags if name in (flag, f"--no-{flag[2:]}")]
        return given[-1] == flag if given else None

    def number(self, flag: str, default: int, least: int, most: int = 1 << 20) -> int:
        """A flag's whole number."""
        text = self.flags.get(flag)
        if text is None:
            return default
        if not text.isdecimal() or not least <= int(text) <= most:
            raise SettingsError(f"--engine vllm: {flag} takes a number from {least} to {most}, not {text!r}")
        return int(text)

    @property
    def ranks(self) -> range:
        """The data-parallel ranks that run in this engine's processes."""
        size = self.number("--data-parallel-size", 1, 1)
        if "--data-parallel-rank" in self.flags:
            rank = self.number("--data-parallel-rank", 0, 0)
            return range(rank, rank + 1)
        first = self.number("--data-parallel-start-rank", 0, 0)
        return range(first, first + self.number("--data-parallel-size-local", max(size - first, 1), 1))

    @property
    def kv_config(self) -> Mapping[str, Any] | None:
        """The KV event configuration that is given, as JSON or key by key; None without one."""
        dotted = {
            name.partition(".")[2]: _json_or_text(value)
            for name, value in self.flags.items()
            if name.startswith(f"{KV_EVENTS}.")
        }
        text = self.flags.get(KV_EVENTS)
        if dotted or text is None:
            return dotted or None
        try:
            config = json.loads(text)
        except ValueError as exc:
            raise SettingsError(f"--engine vllm: {KV_EVENTS} is not JSON: {exc}") from exc
        if not isinstance(config, dict):
            raise SettingsError(f"--engine vllm: {KV_EVENTS} is not a JSON object")
        return config


def _flags(args: Sequence[str]) -> dict[str, str]:
    """Flags by their long name with dashes; a switch has an empty value."""
    found: dict[str, str] = {}
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in _SHORT:
            name = _SHORT[name]
        elif not name.startswith("--"):
            continue
        head, dot, rest = name.partition(".")
        name = head.replace("_", "-") + dot + rest
        if not equals:
            following = args[index + 1] if index + 1 < len(args) else "-"
            value = "" if following.startswith("-") else following
        # Its place among the others says which of two counts.
        found.pop(name, None)
        found[name] = value
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# KV events


def given_sockets(config: Mapping[str, Any], ranks: range) -> KvSockets:
    """Where to hear a vLLM that was given this configuration; nowhere where it publishes nothing or connects."""
    enabled = str(config.get("enable_kv_cache_events")).lower() == "true"
    if not enabled or config.get("publisher", "zmq") != "zmq":
        return KvSockets()
    events = str(config.get("endpoint") or "tcp://*:5557")
    if not ("*" in events or "::" in events or events.startswith("ipc://")) or events.endswith(":0"):
        return KvSockets()
    replay = str(config.get("replay_endpoint") or "")
    return KvSockets(
        tuple(_reached(events, rank) for rank in ranks),
        tuple(_reached(replay, rank) for rank in ranks) if replay else (),
        str(config.get("topic") or ""),
    )


def _reached(address: str, rank: int) -> str:
    """Where a rank's socket bound to `address` is connected to: vLLM adds the rank to a TCP port."""
    if not address.startswith("tcp://"):
        return address
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not port.isdecimal():
        raise SettingsError(f"--engine vllm: {KV_EVENTS} has no port in {address!r}")
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}.get(host, host)
    return f"tcp://{host}:{int(port) + rank}"


def own_config(ranks: range, folder: Path | None) -> dict[str, Any]:
    """A configuration for this worker's ears: sockets in its private folder, or TCP ports where that is None.

    vLLM binds a TCP address with a wildcard and connects to every other; and it has no rule by which several
    ranks would share a path.
    """
    if folder is not None:
        events, replay = f"ipc://{folder}/kv", f"ipc://{folder}/replay"
    else:
        first = free_ports(2 * len(ranks), host="")
        # vLLM adds the rank.
        events, replay = (f"tcp://*:{first + skip - ranks[0]}" for skip in (0, len(ranks)))
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": events,
        "replay_endpoint": replay,
    }
