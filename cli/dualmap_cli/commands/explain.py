"""`dualmap explain`: where a prompt would go, and why."""

import asyncio
import sys
from typing import Any

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.table import Table

from dualmap_cli.load.sse import error_message


@click.command("explain")
@click.argument("prompt", required=False)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="A router.")
@click.option(
    "--body", type=click.File("rb"), help="A JSON request body instead of PROMPT; - for standard input."
)
@click.option("--policy", help="Decide by another policy.")
@click.option("--slo-ms", type=float, help="Decide under another TTFT objective.")
@click.option(
    "--api-key", envvar="OPENAI_API_KEY", help="An administrator's key, if routers ask. [env: OPENAI_API_KEY]"
)
@click.option("--json", "as_json", is_flag=True, help="The router's answer as it is.")
def explain(
    prompt: str | None,
    url: str,
    body: Any,
    policy: str | None,
    slo_ms: float | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Ask a router for a dry run of its decision for PROMPT."""
    if body is not None:
        payload = body.read()
    elif prompt is not None:
        payload = msgspec.json.encode({"prompt": prompt})
    else:
        raise click.UsageError("give a PROMPT or --body FILE")
    headers = {"content-type": "application/json"}
    if policy:
        headers["x-dualmap-policy"] = policy
    if slo_ms:
        headers["x-dualmap-slo-ttft-ms"] = str(slo_ms)
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    status, answer = asyncio.run(_ask(url.rstrip("/") + "/debug/explain", payload, headers))
    if as_json:
        click.echo(answer.decode(errors="replace"))
    if status != 200:
        click.echo(f"the router answered {status}: {error_message(answer)}", err=True)
        sys.exit(1)
    if not as_json:
        try:
            _print(msgspec.json.decode(answer))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as exc:
            raise click.ClickException(f"what answers at {url} is no router of this release") from exc


async def _ask(url: str, payload: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.post(url, data=payload, headers=headers) as response,
        ):
            return response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise click.ClickException(f"no router answers at {url}: {exc}") from exc


def _print(report: dict[str, Any]) -> None:
    console = Console()
    prompt, decision = report["prompt"], report["decision"]
    console.print(
        f"{prompt['tokens']} tokens, {prompt['chunks']} chunks; the key is {prompt['key_chunks']} chunk(s), "
        f"{prompt['key']}; candidates {', '.join(report['candidates'])}"
    )
    if decision is None:
        console.print("Redis is away: the router decides by itself")
    else:
        console.print(
            f"[bold]{decision['instance']}[/bold] by {report['policy']}, because of {decision['reason']}: "
            f"expected TTFT {decision['predicted_ttft_s']:.3f} s of {report['slo_s']:g} s"
        )
    table = Table(
        "instance", "", "cached chunks", "booked s", "wait s", "own s", "TTFT s", "score", "feasible"
    )
    for row in sorted(report["instances"], key=lambda row: row["score"]):
        table.add_row(
            row["instance"],
            "candidate" if row["candidate"] else "",
            str(row["cached_chunks"]),
            *(f"{row[name]:.3f}" for name in ("load_s", "wait_s", "own_s", "ttft_s", "score")),
            "yes" if row["feasible"] else "no",
            style="bold" if decision and row["instance"] == decision["instance"] else None,
        )
    console.print(table)
