"""`dualmap top`: a router's page on a terminal."""

import asyncio
import contextlib
import sys

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dualmap_cli.load.sse import error_message
from dualmap_cli.top_view import top_view
from dualmap_router.ui.view import Snapshot

_PLAIN_WIDTH = 120
_TIMEOUT = aiohttp.ClientTimeout(total=10)


@click.command("top")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="A router.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Sent as a bearer token. [env: OPENAI_API_KEY]")
@click.option("--once", is_flag=True, help="Print it once; so too where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="The snapshot as one JSON object, once.")
@click.option("--every-s", type=click.FloatRange(min=0.5), default=1.0, show_default=True)
def top(url: str, api_key: str | None, once: bool, as_json: bool, every_s: float) -> None:
    """Watch instances, requests and moves as a router sees them, until Ctrl-C."""
    # What is no terminal has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        if as_json or once or not console.is_terminal:
            packed = asyncio.run(_once(url, headers))
            if as_json:
                sys.stdout.buffer.write(msgspec.json.format(packed, indent=2) + b"\n")
            else:
                console.print(top_view(_decoded(packed)))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(_watch(url, headers, every_s, console))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise click.ClickException(f"no router answers at {url}: {error}") from error


async def _once(url: str, headers: dict[str, str]) -> bytes:
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as http:
        return await _fetch(http, url)


async def _watch(url: str, headers: dict[str, str], every_s: float, console: Console) -> None:
    """Redraw in place; a router that is away for a moment is waited for once it has answered."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as http:
        snapshot = _decoded(await _fetch(http, url))
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(top_view(snapshot, console.height), refresh=True)
                await asyncio.sleep(every_s)
                try:
                    snapshot = _decoded(await _fetch(http, url))
                except (aiohttp.ClientError, TimeoutError) as error:
                    lost = Text(f"! no answer from {url}: {type(error).__name__}", style="bold red")
                    live.update(lost, refresh=True)
                    await asyncio.sleep(every_s)


async def _fetch(http: aiohttp.ClientSession, url: str) -> bytes:
    async with http.get(f"{url.rstrip('/')}/ui/snapshot") as response:
        body = await response.read()
    if response.status == 200:
        return body
    if response.status == 404:
        raise click.ClickException(
            f"the router at {url} serves no page: it runs with --ui false, or is older"
        )
    raise click.ClickException(f"the router at {url} answered {response.status}: {error_message(body)}")


def _decoded(packed: bytes) -> Snapshot:
    try:
        return msgspec.json.decode(packed, type=Snapshot)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"the router is of another release: {error}") from error
