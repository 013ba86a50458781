"""`dualmap doctor`: look at a running system and name what is wrong, and what to do."""

import asyncio
import sys

import click
import msgspec
from redis.exceptions import RedisError
from rich.console import Console

from dualmap_cli.doctor.clocks import Clocks
from dualmap_cli.doctor.finding import Finding
from dualmap_cli.doctor.instances import instance_findings
from dualmap_cli.doctor.routers import router_finding
from dualmap_cli.doctor.store import store_findings
from dualmap_cli.registry import pool_options
from dualmap_service.access import AccessSettings
from dualmap_service.redis_servers import redis_client
from dualmap_wire.redis_keys import PoolKeys

_MARK = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "bad": "[red]bad [/red]"}


@click.command("doctor")
@pool_options
@click.option("--router", "routers", multiple=True, metavar="URL", help="A router to ask; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The findings as one JSON object.")
def doctor(access: AccessSettings, routers: tuple[str, ...], as_json: bool) -> None:
    """Check store, rebalancer, instances, KV events, routers and clocks; exits with 1 if something is bad."""
    findings = asyncio.run(_examine(access, routers))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"findings": findings}), indent=2).decode())
    else:
        console = Console(soft_wrap=True)
        for finding in findings:
            console.print(f"{_MARK[finding.state]} {finding.about}: {finding.says}", highlight=False)
            if finding.do:
                console.print(f"       {finding.do}", style="bold", highlight=False)
    sys.exit(1 if any(finding.state == "bad" for finding in findings) else 0)


async def _examine(access: AccessSettings, routers: tuple[str, ...]) -> list[Finding]:
    findings: list[Finding] = []
    clocks = Clocks()
    try:
        async with redis_client(access) as redis:
            async for finding in store_findings(redis, PoolKeys(access.pool), clocks):
                findings.append(finding)
            async for finding in instance_findings(redis, access, clocks):
                findings.append(finding)
    except (RedisError, OSError) as exc:
        findings.append(
            Finding(
                "bad",
                "store",
                f"no answer from it: {exc}",
                "Check --redis-url. Routers go on by themselves meanwhile, each with its own view.",
            )
        )
    for url in routers:
        findings.append(await router_finding(url.rstrip("/"), clocks))
    findings += clocks.findings()
    return findings
