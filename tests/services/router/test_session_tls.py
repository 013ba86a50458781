"""Sessions over mutual TLS: who has the right certificates works, everybody else is refused and told why."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop

from dualmap_router.sessions import Session
from dualmap_service.credentials import PemFiles
from dualmap_service.grpc_access import GrpcAccess, MutualTls, PlainGrpc
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_wire.v1.worker_pb2_grpc import (
    WorkerControlServicer,
    WorkerControlStub,
    WorkerDataServicer,
    add_WorkerControlServicer_to_server,
    add_WorkerDataServicer_to_server,
)

from ...certificates import Authority, Pem
from ...waiting import eventually

_TEXT = b"some text " * 500_000


class Worker(WorkerDataServicer, WorkerControlServicer):
    """Says hello, and sends each request's body back."""

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.WorkerFrame]:  # type: ignore[override]  # noqa: N802
        async for frame in request_iterator:
            reply = pb.WorkerFrame()
            for submit in frame.submits:
                reply.events.add(stream=submit.stream, data=submit.body)
                reply.events.add(stream=submit.stream, end=pb.End())
            yield reply

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:  # noqa: N802
        return pb.DescribeReply(instance="w")


@asynccontextmanager
async def worker(access: GrpcAccess) -> AsyncIterator[str]:
    """A worker's address."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    add_WorkerDataServicer_to_server(Worker(), server)
    add_WorkerControlServicer_to_server(Worker(), server)
    port = access.listen(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def session(access: GrpcAccess, address: str) -> AsyncIterator[Session]:
    opened = Session("w", address, pb.Hello(router="r", pool="p"), 1 << 26, lambda: None, access)
    try:
        yield opened
    finally:
        await opened.close()


async def carries(opened: Session) -> bool:
    """Whether a request and its answer go through, both larger than a frame."""
    exchange = opened.submit(pb.Submit(request_id="x", body=_TEXT))
    received = b""
    while (event := await exchange.next()) is not None:
        if event[0] == "failed":
            return False
        if event[0] == "data":
            received += event[1]
    return received == _TEXT


async def answers(access: GrpcAccess, address: str) -> bool:
    async with access.channel(address) as channel:
        try:
            await WorkerControlStub(channel).Describe(pb.DescribeRequest(), timeout=3.0)
        except grpc.aio.AioRpcError as exc:
            assert exc.code() == grpc.StatusCode.UNAVAILABLE, exc
            return False
    return True


def tls(authority: Authority, pem: Pem, server_name: str = "") -> MutualTls:
    return MutualTls(PemFiles(authority.ca_file, pem.cert_file, pem.key_file), server_name)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pem")


def on_uvloop(body: Callable[[], Awaitable[None]]) -> None:
    """As the services run."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    uvloop.run(bounded())


@pytest.mark.parametrize("server_name", ["", "workers.internal"])
def test_right_certificates(authority: Authority, server_name: str) -> None:
    server = tls(authority, authority.issue("worker", server_name or "127.0.0.1"))
    client = tls(authority, authority.issue("router", "router.internal"), server_name)

    async def body() -> None:
        async with worker(server) as address, session(client, address) as opened:
            await eventually(lambda: opened.connected)
            assert await carries(opened)
            assert await answers(client, address)

    on_uvloop(body)


@pytest.mark.parametrize("wrong", ["none", "CA", "expired", "name", "plain server", "expired server"])
def test_wrong_certificates(
    authority: Authority, tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path / "stranger")
    good = tls(authority, authority.issue("router"))
    pem = authority.issue("worker", "127.0.0.1", expired=wrong == "expired server")
    server = PlainGrpc() if wrong == "plain server" else tls(authority, pem)
    # A stranger that trusts the right CA: only the server can tell.
    imposter = stranger.issue("router")
    client: GrpcAccess = {
        "none": PlainGrpc(),
        "CA": MutualTls(PemFiles(authority.ca_file, imposter.cert_file, imposter.key_file), ""),
        "expired": tls(authority, authority.issue("old", expired=True)),
        "name": tls(authority, authority.issue("other"), "elsewhere.internal"),
        "plain server": good,
        "expired server": good,
    }[wrong]
    caplog.set_level(logging.INFO, "dualmap_router.sessions")

    def reasons() -> list[str]:
        return [record.reason for record in caplog.records if record.message == "session.lost"]  # type: ignore[attr-defined]

    async def body() -> None:
        async with worker(server) as address, session(client, address) as opened:
            # Tried and refused more than once, and never taken for connected.
            await eventually(lambda: len(reasons()) > 1, 20.0)
            assert not opened.connected
            assert not await carries(opened)
            assert not await answers(client, address)

    on_uvloop(body)
    assert all(reasons())
    if wrong != "none":
        assert any(
            word in reasons()[0].lower() for word in ("certificate", "ssl", "unknown ca", "expired")
        ), reasons()


def test_certificates_that_are_renewed(authority: Authority, tmp_path: Path) -> None:
    """The files change under running processes: new sessions use the new ones, those that run go on."""
    ends = {}
    for name in ("worker", "router"):
        pem = authority.issue(name)
        ends[name] = tls(authority, pem)
    successor = Authority(tmp_path / "successor")

    def renew() -> None:
        for name in ("worker", "router"):
            pem = successor.issue(name)
            # Key and certificate change one after the other.
            shutil.copy(pem.key_file, tmp_path / f"pem/{name}.key")
            shutil.copy(pem.cert_file, tmp_path / f"pem/{name}.pem")
        shutil.copy(successor.ca_file, authority.ca_file)

    async def body() -> None:
        async with worker(ends["worker"]) as address, session(ends["router"], address) as before:
            await eventually(lambda: before.connected)
            renew()
            async with session(ends["router"], address) as after:
                await eventually(lambda: after.connected)
                assert await carries(after)
            assert await answers(ends["router"], address)
            assert await carries(before)

    on_uvloop(body)


def test_a_renewal_half_way_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    server, client = tls(authority, authority.issue("worker")), tls(authority, authority.issue("router"))

    async def body() -> None:
        async with worker(server) as address, session(client, address) as before:
            await eventually(lambda: before.connected)
            other = Authority(tmp_path / "other").issue("any")
            for name in ("worker", "router"):
                shutil.copy(other.key_file, tmp_path / f"pem/{name}.key")
            async with session(client, address) as after:
                await eventually(lambda: after.connected)
                assert await carries(after)

    on_uvloop(body)
