"""`dualmap drain`: take instances out of service without losing a request."""

import asyncio
import time

import click
import grpc
import msgspec

from dualmap_cli.leftovers import describe
from dualmap_cli.registry import one_of, pool_options, read_registrations
from dualmap_service.access import AccessSettings
from dualmap_service.grpc_access import grpc_access
from dualmap_wire.telemetry import Registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import WorkerControlStub

_POLL_S = 0.2


class Drained(msgspec.Struct, frozen=True):
    """What became of one instance."""

    instance: str
    handed_back: int
    """Requests that waited, and go elsewhere."""
    running: int
    """Requests that are still being answered."""


@click.command("drain")
@click.argument("instances", nargs=-1, required=True)
@click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="How long running answers may take.",
)
@pool_options
@click.option("--json", "as_json", is_flag=True, help="The outcome as one JSON object.")
def drain(access: AccessSettings, instances: tuple[str, ...], wait_s: float, as_json: bool) -> None:
    """Let INSTANCES take nothing more, give back what waits, and wait for what runs.

    Exits 0 when nothing runs on them any more: then their workers and engines can be stopped. A worker that drains
    does so until it is started again.
    """
    outcome = asyncio.run(_drain(access, instances, wait_s, said=not as_json))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"drained": outcome}), indent=2).decode())
    left = [one.instance for one in outcome if one.running]
    if left:
        raise click.ClickException(f"still answering after {wait_s:g} s: {', '.join(left)}")
    if not as_json:
        click.echo("nothing runs there any more: their workers and engines can be stopped")


async def _drain(
    access: AccessSettings, instances: tuple[str, ...], wait_s: float, said: bool
) -> list[Drained]:
    registrations = await read_registrations(access)
    wanted = [one_of(registrations, instance) for instance in instances]
    return list(await asyncio.gather(*(_drain_one(access, entry, wait_s, said) for entry in wanted)))


async def _drain_one(access: AccessSettings, entry: Registration, wait_s: float, said: bool) -> Drained:
    try:
        async with grpc_access(access).channel(entry.grpc_address) as channel:
            reply: pb.DrainReply = await WorkerControlStub(channel).Drain(pb.DrainRequest(), timeout=10.0)
        if said:
            click.echo(f"{entry.instance}: {reply.handed_back} go elsewhere, {reply.running} still running")
        deadline_s = time.monotonic() + wait_s
        running = reply.running
        while running and time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
            described = await describe(entry.grpc_address, access)
            running = described.queued + described.running
    except grpc.aio.AioRpcError as exc:
        raise click.ClickException(
            f"{entry.instance} at {entry.grpc_address} does not answer: {exc.code().name}"
        ) from exc
    return Drained(entry.instance, reply.handed_back, running)
