"""`dualmap up`: the demo's system, left running."""

import asyncio
import signal

import click
import uvloop
from rich.console import Console

from dualmap_cli.stack import Stack, StackError, StackOptions


@click.command("up")
@click.option("--routers", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option(
    "--instances", type=click.IntRange(1, 64), default=4, show_default=True, help="Simulated engines."
)
@click.option("--rebalancers", type=click.IntRange(0, 4), default=1, show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65000),
    default=8000,
    show_default=True,
    help="The first router's port; the others follow. 0 for free ones.",
)
@click.option(
    "--engine-url",
    "engine_urls",
    multiple=True,
    metavar="URL",
    help="An engine that runs already; repeatable.",
)
@click.option("--redis-url", help="Use this Redis or Valkey instead of an embedded one.")
@click.option("--pool", default="demo", show_default=True)
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How many times faster than real the engines are.",
)
@click.option(
    "--slo-s",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="TTFT objective, model seconds.",
)
@click.option(
    "--trace-endpoint",
    default="",
    metavar="URL",
    help="Send the spans of every request to this OTLP/gRPC collector, as http://localhost:4317.",
)
def up(
    routers: int,
    instances: int,
    rebalancers: int,
    port: int,
    engine_urls: tuple[str, ...],
    redis_url: str | None,
    pool: str,
    time_scale: float,
    slo_s: float,
    trace_endpoint: str,
) -> None:
    """Run the whole system on this machine until Ctrl-C, with simulated engines or your own."""
    options = StackOptions(
        routers=routers,
        workers=instances,
        rebalancers=rebalancers,
        first_port=port,
        engine_urls=engine_urls,
        redis_url=redis_url,
        pool=pool,
        time_scale=time_scale,
        slo_s=slo_s,
        trace_endpoint=trace_endpoint,
    )
    try:
        uvloop.run(_run(options))
    except StackError as error:
        raise click.ClickException(str(error)) from error


async def _run(options: StackOptions) -> None:
    console = Console()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def said(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    async with Stack(options, said) as stack:
        url = stack.router_urls[0]
        said(f"page       {url}/")
        said(f"logs       {stack.logs}")
        said("")
        said("try:")
        said(f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\")
        said(
            '    -d \'{"model": "sim-model", "stream": true, "messages": [{"role": "user", "content": "hello"}]}\''
        )
        said(f"  dualmap load --url {url} --workload chat --requests 200")
        said(f"  dualmap top --url {url}")
        said(f"  dualmap explain --url {url} 'hello'")
        said(f"  dualmap doctor --redis-url {stack.redis_url} --pool {options.pool} --router {url}")
        said("Ctrl-C stops everything.")
        watch = asyncio.create_task(_watch(stack, said))
        try:
            await stop.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


async def _watch(stack: Stack, said: object) -> None:
    """Say so when a part ends by itself."""
    gone: set[str] = set()
    while True:
        for name, child in stack.children.items():
            if not child.running and name not in gone:
                gone.add(name)
                if callable(said):
                    said(f"{name} ended with status {child.process.returncode}; see {child.log}")
        await asyncio.sleep(0.5)
