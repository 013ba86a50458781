"""`dualmap trace`: make traces of other people's logs, and say what is in one."""

import secrets
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.text import Text

from dualmap_cli.trace_view import description_view
from dualmap_sim.workloads import TraceError, TraceReading, WorkloadError, read_mooncake
from dualmap_sim.workloads.arrival import to_arrivals
from dualmap_sim.workloads.describe import PoolSize, describe
from dualmap_sim.workloads.importing import FORMATS, ImportOptions, ImportReport, import_trace
from dualmap_sim.workloads.verdict import verdict

_OFF_BY = 0.1


class _BadTrace(click.ClickException):
    """What is wrong with a file; distinct from a failure of the command."""

    exit_code = 2


@click.group("trace")
def trace() -> None:
    """Make a trace of a log of your own, and say what is in it."""


@trace.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The trace to write."
)
@click.option("--format", "name", type=click.Choice(["auto", *FORMATS]), default="auto", show_default=True)
@click.option("--skip-bad", is_flag=True, help="Count bad lines and go on.")
@click.option("--salt", help="Hash under this: the same salt gives the same ids. [default: a random one]")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only its requests; give several.")
@click.option(
    "--bytes-per-token",
    type=float,
    default=4.0,
    show_default=True,
    help="Of the prompts' text: a chunk is 512 times that.",
)
@click.option("--keep-names", is_flag=True, help="Tenants and sessions as the log has them.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def import_command(
    source: Path,
    out: Path,
    name: str,
    skip_bad: bool,
    salt: str | None,
    models: tuple[str, ...],
    bytes_per_token: float,
    keep_names: bool,
    as_json: bool,
) -> None:
    """Read SOURCE, a request log, and write it as a trace that every other command can read.

    mooncake: JSONL with timestamp (ms), input_length, output_length, hash_ids. openai: JSONL, each line a request
    body, or one under request, body or params, with a timestamp, created, time or ts (epoch or ISO 8601; a number
    over 1e11 is milliseconds) and perhaps usage. burstgpt: CSV with Timestamp, Request tokens, Response tokens, and
    perhaps a session or conversation id.

    No prompt is written out: only ids of its blocks, under a salt. Exits with 2 at a bad line.
    """
    try:
        options = ImportOptions(
            format=None if name == "auto" else name,
            # A random salt by default: nobody can test a guess at a prompt against the ids.
            salt=secrets.token_hex(16) if salt is None else salt,
            skip_bad=skip_bad,
            bytes_per_token=bytes_per_token,
            keep_names=keep_names,
            models=models,
        )
        report = import_trace(source, out, options)
    except WorkloadError as error:
        raise _BadTrace(str(error)) from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _say(report, out, bytes_per_token)


def _say(report: ImportReport, out: Path, bytes_per_token: float) -> None:
    click.echo(f"{out}: {report.requests} requests over {report.duration_s:.0f} s, read as {report.format}")
    if report.bad_lines:
        click.echo(f"{report.bad_lines} bad lines skipped, the first of them:")
        for example in report.bad_examples:
            click.echo(f"  {example}")
    if report.guessed_outputs:
        click.echo(f"{report.guessed_outputs} answers are not measured in the log: their length is a guess")
    if len(report.models) > 1:
        named = ", ".join(f"{model} {count}" for model, count in list(report.models.items())[:8])
        click.echo(f"several models ({named}): they share nothing, and each is a pool; --model takes one")
    measured = report.bytes_per_token
    if measured is not None and abs(measured / bytes_per_token - 1) > _OFF_BY:
        click.echo(
            f"a token takes {measured:.2f} bytes here, not {bytes_per_token:g}: "
            f"with --bytes-per-token {measured:.2f} shared prefixes keep their true length"
        )


@trace.command("describe")
@click.argument("source", metavar="TRACE", type=click.Path(path_type=Path))
@click.option("--instances", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--kv-blocks",
    type=click.IntRange(min=1),
    default=840,
    show_default=True,
    help="KV room of an instance, in blocks of 512 tokens.",
)
@click.option(
    "--slo-s",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="TTFT objective, where a request has none of its own.",
)
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def describe_command(source: Path, instances: int, kv_blocks: int, slo_s: float, as_json: bool) -> None:
    """Say what TRACE asks of a pool, how much of it repeats, and whether cache affinity can pay.

    Prefill times are those of the serial model that the simulator starts from: 0.015 s + 90 us a token, and
    attention. Exits with 2 at a bad line.
    """
    pool = PoolSize(instances, kv_blocks, slo_s)
    try:
        found = describe(to_arrivals(read_mooncake(source, TraceReading(bucket_s=0))), pool)
    except TraceError as error:
        raise _BadTrace(str(error)) from error
    except WorkloadError as error:
        raise _BadTrace(f"{source}: {error}") from error
    if as_json:
        figures = {**msgspec.to_builtins(found), "pool": pool, "verdict": verdict(found, pool)}
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
        return
    console = Console()
    console.print(Text(str(source), style="bold"))
    console.print(description_view(found, pool))
