"""`dualmap load`: replay a workload against OpenAI endpoints and report what users would have seen."""

import asyncio
import resource
import signal
import sys
from pathlib import Path

import aiohttp
import click
import msgspec
import uvloop
from rich.console import Console

from dualmap_cli.load import LoadError, LoadOptions, LoadResult, Slo, check_target, run_load
from dualmap_cli.load.exchange import first_model
from dualmap_cli.load.screen import print_report, progress_view
from dualmap_sim.workloads import (
    PATTERNS,
    WORKLOADS,
    Hotspot,
    TimedRequest,
    TraceReading,
    Traffic,
    WorkloadError,
    add_hotspot,
    make_workload,
    read_mooncake,
    summarize,
)

_DEFAULT_RATE_REQ_S = 2.0
_DEFAULT_REQUESTS = 200


@click.command("load")
@click.option("--url", "urls", multiple=True, metavar="URL", help="Base URL; give several to spread over.")
@click.option("--workload", metavar="NAME", help="A built-in workload. [default: chat]")
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="FILE", help="A trace: see `dualmap trace`."
)
@click.option("--list-workloads", is_flag=True, help="Say what workloads there are, and stop.")
@click.option("--set", "settings", multiple=True, metavar="NAME=NUMBER", help="A setting of the workload.")
@click.option("--rate", type=float, help="Requests per second. [default: 2, or the trace's own]")
@click.option("--pattern", type=click.Choice(list(PATTERNS)), help="How a workload's rate varies.")
@click.option("--requests", "count", type=int, help="How many requests. [default: 200, or all of the trace]")
@click.option("--duration", type=float, help="How many seconds of the workload.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other requests.")
@click.option("--hotspot", type=float, metavar="SHARE", help="Turn a share of the middle to one hot prefix.")
@click.option("--chat", "as_chat", is_flag=True, help="Send a trace's prompts as chat messages.")
@click.option("--model", help="Model name. [default: the first that the endpoint serves]")
@click.option("--slo-s", type=float, default=5.0, show_default=True, help="TTFT objective in seconds.")
@click.option("--slo-per-1k-tokens-s", type=float, default=0.0, help="More TTFT per 1,000 prompt tokens.")
@click.option("--send-slo", is_flag=True, help="Tell the router each request's objective.")
@click.option("--time-scale", type=float, default=1.0, show_default=True, help="Replay this much faster.")
@click.option("--max-in-flight", type=int, default=4096, show_default=True, help="A safety bound.")
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Per request.")
@click.option(
    "--retries", type=int, default=0, show_default=True, help="Tries at the next URL when one fails."
)
@click.option("--no-stream", is_flag=True, help="Ask for whole answers.")
@click.option("--ignore-eos", is_flag=True, help="Have vLLM write every answer to its full length.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Sent as a bearer token. [env: OPENAI_API_KEY]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write one JSON line per request here."
)
def load(
    urls: tuple[str, ...],
    workload: str | None,
    trace: Path | None,
    list_workloads: bool,
    settings: tuple[str, ...],
    rate: float | None,
    pattern: str | None,
    count: int | None,
    duration: float | None,
    seed: int,
    hotspot: float | None,
    as_chat: bool,
    model: str | None,
    slo_s: float,
    slo_per_1k_tokens_s: float,
    send_slo: bool,
    time_scale: float,
    max_in_flight: int,
    timeout_s: float,
    retries: int,
    no_stream: bool,
    ignore_eos: bool,
    api_key: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Replay a workload against OpenAI endpoints, whatever they answer, and report.

    Seconds are model seconds: with --time-scale 10 a replay takes a tenth of the time, and reported times
    are ten times the measured ones. Ctrl-C reports what there is so far. Exits with 1 if a request failed.
    """
    if list_workloads:
        _print_workloads()
        return
    if not urls:
        raise click.UsageError("say where to send the requests: --url http://127.0.0.1:8000")
    if trace is not None and (workload is not None or settings or pattern):
        raise click.UsageError("--trace excludes --workload, --set and --pattern")
    try:
        targets = [check_target(url) for url in urls]
        if trace is not None:
            reading = TraceReading(count=count, duration_s=duration, rate_req_s=rate, as_chat=as_chat)
            requests = read_mooncake(trace, reading)
        else:
            count = _DEFAULT_REQUESTS if count is None and duration is None else count
            mean_req_s = _DEFAULT_RATE_REQ_S if rate is None else rate
            traffic = Traffic(mean_req_s, count, duration, seed, PATTERNS[pattern or "steady"])
            requests = make_workload(workload or "chat", traffic, _parse_settings(settings))
        if hotspot is not None:
            requests = add_hotspot(requests, Hotspot(share=hotspot), seed)
        options = LoadOptions(
            model=_model(model, targets[0], api_key),
            stream=not no_stream,
            time_scale=time_scale,
            max_in_flight=max_in_flight,
            timeout_s=timeout_s,
            retries=retries,
            slo=Slo(slo_s, slo_per_1k_tokens_s),
            send_slo=send_slo,
            api_key=api_key,
            extra_body={"ignore_eos": True} if ignore_eos else {},
        )
    except (WorkloadError, LoadError) as error:
        raise click.ClickException(str(error)) from error
    _raise_open_file_limit()
    result = uvloop.run(_run(requests, targets, options))
    if out is not None:
        _write_records(result, out)
    if as_json:
        click.echo(result.report.to_json())
    else:
        print_report(result.report)
    if result.report.errors:
        sys.exit(1)


async def _run(requests: list[TimedRequest], targets: list[str], options: LoadOptions) -> LoadResult:
    console = Console(stderr=True)
    shape = summarize(requests)
    console.print(
        f"{shape.requests} requests over {shape.duration_s:.0f} s, "
        f"{shape.mean_input_tokens:.0f} input and {shape.mean_output_tokens:.0f} output tokens on average, "
        f"{shape.ideal_hit_share:.1%} of prompt blocks reusable",
        highlight=False,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        with progress_view(console) as view:
            return await run_load(requests, targets, options, view.show, stop)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _model(given: str | None, target: str, api_key: str | None) -> str:
    if given is not None:
        return given
    try:
        return asyncio.run(first_model(target, api_key))
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise click.ClickException(
            f"cannot ask {target} for its model: {reason} (or give --model)"
        ) from error


def _parse_settings(settings: tuple[str, ...]) -> dict[str, float]:
    values: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            values[name] = float(value)
        except ValueError as error:
            raise click.UsageError(f"--set takes NAME=NUMBER, not {setting!r}") from error
    return values


def _print_workloads() -> None:
    for name, workload in WORKLOADS.items():
        click.echo(f"{name:15} {workload.description}")
        defaults = (f"{key}={value}" for key, value in workload.defaults().items())
        click.echo(click.wrap_text(" ".join(defaults), 100, " " * 16, " " * 16))


def _write_records(result: LoadResult, out: Path) -> None:
    try:
        with out.open("wb") as file:
            for record in result.records:
                file.write(msgspec.json.encode(record) + b"\n")
    except OSError as error:
        raise click.ClickException(f"cannot write {out}: {error.strerror}") from error


def _raise_open_file_limit() -> None:
    # Every request in flight holds a socket; the usual soft limit of 1,024 would show up as errors.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
