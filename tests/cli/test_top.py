"""`dualmap top`: the page's numbers on a terminal, for people and for scripts."""

import asyncio
import contextlib
import io
import json
import os
import pty
import sys

import aiohttp
import msgspec
from rich.console import Console

from dualmap_cli.stack import Stack, StackOptions
from dualmap_cli.top_view import top_view, troubles
from dualmap_router.ui.view import Gone, Snapshot

from ..integration.conftest import chat, post

HOSTILE = "[red]x[/red]<img>"


async def top(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", "top", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def shown(snapshot: Snapshot, width: int = 120, height: int = 40) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(top_view(snapshot, height))
    return captured.get()


async def test_top_of_a_live_router() -> None:
    async with (
        Stack(StackOptions(routers=1, workers=2, rebalancers=1, time_scale=4.0)) as stack,
        aiohttp.ClientSession() as http,
    ):
        url = stack.router_urls[0]
        for number in range(3):
            headers = {"x_request_id": f"{HOSTILE}-{number}"}
            assert (await post(http, url, "/v1/chat/completions", chat("hello"), **headers))[0] == 200
        # 1. For scripts.
        status, out, _ = await top("--url", url, "--json")
        assert status == 0
        assert {instance["name"] for instance in json.loads(out)["instances"]} == {"worker-1", "worker-2"}
        snapshot = msgspec.json.decode(out, type=Snapshot)
        # 2. Once; no terminal is that as well.
        for flags in (["--once"], []):
            status, out, _ = await top("--url", url, *flags)
            assert status == 0
            assert "worker-1" in out and "worker-2" in out
            assert f"{HOSTILE}-2" in out, "an id is text, not markup"
        # 3. On a terminal until Ctrl-C.
        assert b"worker-1" in await on_a_terminal("--url", url)
    # 4. What is wrong is said in words.
    said = shown(msgspec.structs.replace(snapshot, store_available=False, gone=[Gone(name="w9", age_s=3.0)]))
    assert "Redis cannot be reached" in said
    assert "w9 left 3 s ago" in said
    assert troubles(msgspec.structs.replace(snapshot, board_known=False))[0].startswith("no rebalancer")


async def on_a_terminal(*arguments: str) -> bytes:
    """What it draws until it is interrupted."""
    ours, theirs = pty.openpty()
    # Who runs in the background of a shell ignores SIGINT, and so would its children.
    default = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    run = default + "runpy.run_module('dualmap_cli', run_name='__main__', alter_sys=True)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", run, "top", *arguments, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    drawn = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            drawn.extend(os.read(ours, 1 << 16))

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)
    try:
        async with asyncio.timeout(30):
            while b"worker-1" not in drawn:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            process.send_signal(2)
            assert await process.wait() == 0
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
    return bytes(drawn)


async def test_what_is_wrong_is_said() -> None:
    status, _, err = await top("--url", "http://127.0.0.1:1", "--once")
    assert status == 1
    assert "no router answers" in err


async def test_a_router_without_a_page() -> None:
    async with Stack(
        StackOptions(routers=1, workers=1, rebalancers=0, router_flags={"ui": "false"})
    ) as stack:
        status, _, err = await top("--url", stack.router_urls[0], "--json")
        assert status == 1
        assert "--ui false" in err


def test_many_instances_fit_the_screen() -> None:
    instances = [
        {"name": f"w{number}", "state": "active", "model": "m", "weight": 1, "kv_tokens": 0, "kv_events": False,
         "telemetry_age_s": 0.1, "wait_s": number, "booked_s": 0, "late_s": 0, "tokens_s": 1e4, "speed_known": True,
         "held": False, "hot": False, "running_s": None, "share": None, "requests": 0, "open": 0}
        for number in range(64)
    ]  # fmt: skip
    minutes = {
        "span_s": 300, "requests": 0, "failed": 0, "rate": 0, "attainment": None, "p50_s": None, "p90_s": None,
        "cached_share": None, "moves": 0, "reasons": {}, "points": [],
    }  # fmt: skip
    snapshot = msgspec.convert(
        {
            "at_s": 0, "router": "r", "pool": "p", "models": ["m"], "policy": "dualmap", "slo_s": 5,
            "store_available": True, "draining": False, "board_known": True, "leader": "l", "rings_version": 1,
            "in_flight": 0, "instances": instances, "gone": [], "prefixes": [], "num_splits": 0, "moves": [],
            "minutes": minutes, "waiting": [], "ended": [],
        },
        Snapshot,
        strict=False,
    )  # fmt: skip
    said = shown(snapshot, height=40)
    assert len(said.splitlines()) <= 40
    assert "w63" in said and "w2 " not in said
    assert "of 64" in said
