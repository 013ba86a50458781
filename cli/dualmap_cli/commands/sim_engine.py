"""`dualmap sim-engine`: simulated vLLM engines that answer on local ports until told to stop."""

import asyncio
import signal
from dataclasses import asdict

import click
import msgspec
import uvloop

from dualmap_sim.engine import (
    PROFILES,
    EngineConfigError,
    EngineProfile,
    EngineSpec,
    KvDialect,
    named_profile,
    start_engines,
)


@click.command("sim-engine")
@click.option("--engines", default=1, show_default=True, type=click.IntRange(1, 256), help="How many to run.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=0, show_default=True, help="Port of the first, then upwards; 0 takes free ones."
)
@click.option(
    "--kv-port", default=0, show_default=True, help="KV event ports from here, two per engine; 0: free."
)
@click.option("--model", default="sim-model", show_default=True, help="Name of the served model.")
@click.option("--lora", "loras", multiple=True, metavar="NAME", help="A served adapter; repeatable.")
@click.option("--profile", "profile_name", default="default", show_default=True, help=", ".join(PROFILES))
@click.option("--kv-blocks", type=int, help="KV blocks per engine.")
@click.option("--block-size", type=int, help="Tokens per KV block.")
@click.option("--max-model-len", type=int, help="Longest prompt plus output, in tokens.")
@click.option("--max-num-seqs", type=int, help="Sequences that run at once.")
@click.option("--max-num-batched-tokens", type=int, help="Tokens per step.")
@click.option("--stream-interval", type=int, help="Tokens to a chunk of a stream, after its first.")
@click.option("--time-scale", type=float, help="Model seconds per wall second.")
@click.option("--jitter", type=float, help="Share by which a step's time varies, 0 to 1.")
@click.option("--seed", type=int, help="Seed of the jitter and of the faults.")
@click.option("--kv-events/--no-kv-events", default=True, show_default=True, help="Publish KV cache events.")
@click.option(
    "--kv-dialect", type=click.Choice(KvDialect), default=KvDialect.MAP, help="Encoding of KV events."
)
@click.option("--exit-on-crash", is_flag=True, help="/admin/crash ends this process, not just that engine.")
def sim_engine(
    engines: int,
    host: str,
    port: int,
    kv_port: int,
    model: str,
    loras: tuple[str, ...],
    profile_name: str,
    kv_blocks: int | None,
    block_size: int | None,
    max_model_len: int | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    stream_interval: int | None,
    time_scale: float | None,
    jitter: float | None,
    seed: int | None,
    kv_events: bool,
    kv_dialect: KvDialect,
    exit_on_crash: bool,
) -> None:
    """Run simulated engines; once all listen, one JSON line says where."""
    try:
        profile = named_profile(profile_name).override(
            num_kv_blocks=kv_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            stream_interval=stream_interval,
            time_scale=time_scale,
            jitter=jitter,
            seed=seed,
        )
    except EngineConfigError as error:
        raise click.UsageError(str(error)) from error
    specs = [
        EngineSpec(
            profile=_seeded(profile, index),
            model=model,
            host=host,
            port=port + index if port else 0,
            kv_events=kv_events,
            kv_port=kv_port + 2 * index if kv_port else 0,
            kv_replay_port=kv_port + 2 * index + 1 if kv_port else 0,
            kv_dialect=kv_dialect,
            loras=loras,
            exit_on_crash=exit_on_crash,
        )
        for index in range(engines)
    ]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(specs))


def _seeded(profile: EngineProfile, index: int) -> EngineProfile:
    # Engines of one seed must not stumble in step.
    return profile.override(seed=profile.seed + index)


async def _serve(specs: list[EngineSpec]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        host = await start_engines(specs)
    except OSError as error:
        raise click.ClickException(f"cannot listen: {error}") from error
    async with host:
        ready = {"engines": [asdict(address) for address in host.addresses]}
        click.echo(msgspec.json.encode(ready).decode())
        await stopped.wait()
