"""The session protocol as a state machine: no order of events starts a request twice, loses it or leaves anything.

A router with its pilot flies requests to two workers over `memory_net`; the engine behind each says what the rules
say. Redis is away: the router decides alone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dualmap.admission import Admission
from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderRule
from dualmap_router.charges import Charges
from dualmap_router.errors import ApiError, ClientGoneError
from dualmap_router.flight import Flight
from dualmap_router.metrics import RouterMetrics
from dualmap_router.models import Models
from dualmap_router.pilot import Pilot
from dualmap_router.placement import Placement
from dualmap_router.request import parse_inference
from dualmap_router.resumer import Resumer
from dualmap_router.sessions import Sessions
from dualmap_router.settings import RouterSettings
from dualmap_service.access import AccessSettings
from dualmap_service.grpc_access import PlainGrpc
from dualmap_service.registry import Member, Membership
from dualmap_service.store import Store
from dualmap_service.tracing import Tracing
from dualmap_wire.telemetry import Registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.errors import EngineLostError
from dualmap_worker.outbox import Outbox
from dualmap_worker.relay import Requests
from dualmap_worker.servicers import DataServicer
from dualmap_worker.trace import FlowTraces

from .memory_net import MemoryLoop

NAMES = ("a", "b")


@dataclass(eq=False)
class Call:
    """A request inside an engine, and its answer: whatever the rules put into `says`; None ends it."""

    number: int
    is_stream: bool
    says: "asyncio.Queue[bytes | Exception | None]" = field(default_factory=asyncio.Queue)
    status: int = 200
    headers: Sequence[tuple[str, str]] = (("content-type", "text/event-stream"),)
    said: int = 0
    over: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self.says.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def speak(self) -> None:
        """The next piece of this request's own text."""
        self.says.put_nowait(piece(self.number, self.said))
        self.said += 1

    def end(self, how: Exception | None) -> None:
        self.over = True
        self.says.put_nowait(how)


def piece(number: int, place: int) -> bytes:
    return b"data: %d.%d\n\n" % (number, place)


class ScriptedEngine:
    """The engine's end of a worker."""

    url = "http://engine"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Any = (), body: bytes = b""
    ) -> AsyncIterator[Call]:
        number, streamed = body.split()
        call = Call(int(number), streamed == b"s")
        self.calls.append(call)
        try:
            yield call
        finally:
            self.calls.remove(call)


class Seen:
    """A client: what it was sent, and how often its answer ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = False
        self.status = 0
        self.body = b""
        self.heads = 0
        self.outcomes: list[str] = []

    async def head(self, status: int, headers: Sequence[pb.Header], flight: Flight) -> None:
        assert not self.outcomes
        assert not (self.answered and self.heads), "a second head"
        self.heads += 1
        self.status, self.body = status, b""
        self.answered = flight.streamed

    async def data(self, chunk: bytes) -> None:
        assert self.heads
        assert not self.outcomes
        self.body += chunk

    async def end(self) -> None:
        self.answered = True
        self.outcomes.append("end")

    async def broken(self, message: str) -> None:
        self.outcomes.append("broken")


class WorkerSide:
    """A worker: servicer, queue and flows in front of a scripted engine."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.engine = ScriptedEngine()
        self.admission = Admission(OrderRule(), 2048, 3, 0.97, PreemptRule(min_run_s=0.01))
        traces = FlowTraces(Tracing("worker", name, "", 0.0), name)
        self.requests = Requests(self.engine, self.admission, 4, lambda: None, traces)  # type: ignore[arg-type]
        self.servicer = DataServicer(self.requests, "p", 1 << 20, 0.0)
        registration = Registration(
            instance=name, pool="p", model="m", grpc_address=f"h:{port}", telemetry_address="", generation=1
        )
        self.member = Member(registration, True, None)


class SessionMachine(RuleBasedStateMachine):
    """Rules are what clients, engines, workers, the rebalancer and the network do."""

    @initialize(cuts=st.lists(st.integers(1, 80), max_size=4))
    def build(self, cuts: list[int]) -> None:
        self.loop = MemoryLoop(cuts)
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.clients: list[Seen] = []
        self.flights: list[Flight] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.outbox = Outbox(1 << 20, 0.0)
        self.run(self._build())
        self.settle(0.2)

    async def _build(self) -> None:
        self.workers = [WorkerSide(name, port) for port, name in enumerate(NAMES, 1)]
        self.loop.hosts.update({worker.port: worker.servicer for worker in self.workers})
        self.store = Store(AccessSettings(redis_url="redis://127.0.0.1:1/0"), "t")
        self.charges = Charges(self.store, "p", "r")
        self.placement = Placement(RouterSettings(pool="p"), "r", self.store, self.charges)
        self.membership = Membership(1, {worker.name: worker.member for worker in self.workers})
        self.sessions = Sessions("r", "p", 1 << 16, self._changed, PlainGrpc())
        self.pilot = Pilot(
            self.placement, self.sessions, RouterMetrics(), Resumer(self.placement, Models()), 3, 600.0
        )
        self.sessions.follow(self.membership)
        self._changed()

    def _changed(self) -> None:
        self.placement.pool.update(self.membership, self.sessions.reachable)

    def run(self, body: Any) -> Any:
        return self.loop.run_until_complete(body)

    def settle(self, for_s: float) -> None:
        self.run(asyncio.sleep(for_s))

    @property
    def calls(self) -> list[Call]:
        return [call for worker in self.workers for call in worker.engine.calls if not call.over]

    @property
    def waiting(self) -> list[tuple[WorkerSide, str]]:
        return [(worker, request_id) for worker in self.workers for request_id in worker.admission.queue]

    # Clients

    @precondition(lambda self: len(self.flights) < 25)
    @rule(
        kinds=st.lists(
            st.tuples(st.booleans(), st.sampled_from([True, True, False])), min_size=1, max_size=5
        ),
        twin=st.booleans(),
        tokens=st.sampled_from([10, 3000, 60_000]),
    )
    def some_ask(self, kinds: list[tuple[bool, bool]], twin: bool, tokens: int) -> None:
        for streamed, queued in kinds:
            self._asks(streamed, queued, twin, tokens)
            self.settle(0)
        self.settle(0.01)

    def _asks(self, streamed: bool, queued: bool, twin: bool, tokens: int) -> None:
        number = len(self.flights)
        inference = parse_inference("/v1/completions", b'{"prompt":"word"}')
        prompt = msgspec.structs.replace(self.placement.prompt(inference, "", None), num_tokens=tokens)
        flight = Flight(
            request_id="same" if twin else f"r{number}",
            method="POST",
            path="/v1/completions",
            label="/v1/completions",
            headers=[],
            body=b"%d %b" % (number, b"s" if streamed else b"w"),
            started_s=time.monotonic(),
            sink=Seen(number),
            prompt=prompt if queued else None,
            slo_s=5.0,
            streamed=streamed,
        )
        self.clients.append(flight.sink)  # type: ignore[arg-type]
        self.flights.append(flight)
        self.tasks.append(self.loop.create_task(self._fly(flight)))

    async def _fly(self, flight: Flight) -> None:
        seen: Any = flight.sink
        try:
            await self.pilot.fly(flight)
        except ApiError:
            assert not seen.answered
            seen.outcomes.append("refused")
        except ClientGoneError:
            assert flight.gone
            seen.outcomes.append("gone")

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99))
    def leaves(self, which: int) -> None:
        self.flights[which % len(self.flights)].client_gone()

    # Engines

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 99), pieces=st.integers(0, 3), then=st.sampled_from(["waits", "ends", "dies"]))
    def engine_answers(self, which: int, pieces: int, then: str) -> None:
        call = self.calls[which % len(self.calls)]
        for _ in range(pieces):
            call.speak()
        self.settle(0.01)
        if then != "waits":
            call.end(EngineLostError("gone") if then == "dies" else None)

    # Workers

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 99), whither=st.sampled_from([*NAMES, "nobody"]))
    def rebalancer_moves(self, place: int, whither: str) -> None:
        worker, request_id = self.waiting[place % len(self.waiting)]
        self.run(self._call(worker.requests.move, request_id, whither))
        self.run(self._call(worker.requests.pump))

    @rule(which=st.integers(0, 1), away=st.booleans())
    def engine_goes_away_or_returns(self, which: int, away: bool) -> None:
        requests = self.workers[which].requests
        if away:
            self.run(self._call(requests.lose_engine))
        requests.engine_away = False

    @rule(which=st.integers(0, 1))
    def worker_hands_back_its_queue(self, which: int) -> None:
        self.run(self._call(self.workers[which].requests.drain))
        self.settle(0.0)
        self.workers[which].requests.draining = False

    @staticmethod
    async def _call(function: Any, *args: Any) -> None:
        function(*args)

    # The network

    @rule(which=st.integers(0, 1))
    def session_is_lost(self, which: int) -> None:
        for link in [link for link in self.loop.links if link.port == which + 1]:
            self.loop.call_soon(link.abort)

    @rule(which=st.integers(0, 1), up=st.booleans())
    def worker_is_reachable_or_not(self, which: int, up: bool) -> None:
        worker = self.workers[which]
        if up:
            self.loop.hosts[worker.port] = worker.servicer
        else:
            self.loop.hosts.pop(worker.port, None)
            self.session_is_lost(which)

    @precondition(lambda self: self.loop.links)
    @rule(
        stream=st.integers(0, 30),
        what=st.sampled_from(
            [pb.Event(data=b"x"), pb.Event(end=pb.End()), pb.Event(moved=pb.Moved(target="b")), pb.Event(),
             pb.Event(failed=pb.Failed(kind=pb.Failed.ENGINE_LOST)), pb.Event(head=pb.Head(status=200))]
        ),
    )  # fmt: skip
    def an_event_comes_late(self, stream: int, what: pb.Event) -> None:
        """For a stream that has ended, or never was."""
        for link in self.loop.links:
            session = self.sessions.get(NAMES[link.port - 1])
            assert session is not None
            if stream not in session._exchanges and stream < session._streams.__reduce__()[1][0]:
                late = pb.Event(stream=stream)
                late.MergeFrom(what)
                self.run(link.write_frame(pb.WorkerFrame(events=[late]).SerializeToString()))

    @rule(which=st.integers(0, 1), stream=st.integers(1, 2), cancels=st.booleans())
    def a_router_repeats_a_stream(self, which: int, stream: int, cancels: bool) -> None:
        """Another router, which does not keep to the protocol."""
        placement = pb.Placement(prompt_tokens=500, slo_s=5.0)
        submit = pb.Submit(
            stream=stream, request_id="rogue", body=b"-1 s", queued=True, streamed=True, placement=placement
        )
        requests = self.workers[which].requests
        self.run(self._call(requests.submit, submit, "rogue", self.outbox))
        if cancels:
            self.run(self._call(requests.cancel, self.outbox, stream))

    # Time

    @rule(turns=st.integers(0, 6))
    def turns_pass(self, turns: int) -> None:
        for _ in range(turns):
            self.settle(0)

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.settle(seconds)

    # What holds at any time

    @invariant()
    def nothing_is_inconsistent(self) -> None:
        if not hasattr(self, "tasks"):
            return
        assert not self.faults, self.faults
        for worker in self.workers:
            requests, admission = worker.requests, worker.admission
            jobs = {flow.job.request_id for flow in requests._flows.values()}
            assert jobs == set(requests._by_job)
            assert set(admission.queue) <= jobs
            assert not admission.running & admission.queue.keys()
            assert len({job.request_id for job in admission.line}) == len(admission.line)
            assert requests.idle.is_set() == (not requests._flows)
        for client, task in zip(self.clients, self.tasks, strict=True):
            assert len(client.outcomes) == task.done(), client.outcomes
            expected = b"".join(piece(client.number, n) for n in range(client.body.count(b"\n\n")))
            assert client.body == expected, "text that is not this request's"

    @invariant()
    def nothing_is_started_twice(self) -> None:
        if not hasattr(self, "tasks"):
            return
        started: list[int] = []
        for worker in self.workers:
            for flow in worker.requests._flows.values():
                # What is being aborted, or whose session is gone, is on its way out.
                if flow._task is not None and not flow._abandoned and not flow.outbox.closed:
                    started.append(int(flow.submit.body.split()[0]))
        flown = [number for number in started if number >= 0]
        gone = {number for number, task in enumerate(self.tasks) if task.done() or self.flights[number].gone}
        twice = {number for number in flown if flown.count(number) > 1} - gone
        assert not twice, twice

    def teardown(self) -> None:
        if hasattr(self, "tasks"):
            try:
                self._end()
            finally:
                self.run(self._close())
                self.loop.close()

    def _end(self) -> None:
        """Everything comes back and answers: every request has one end, and nothing is left."""
        for worker in self.workers:
            self.loop.hosts[worker.port] = worker.servicer
            worker.requests.draining = worker.requests.engine_away = False
        self.settle(6.0)
        for worker in self.workers:
            self.run(self._call(worker.requests.cancel_all, self.outbox))
        for _ in range(200):
            for call in self.calls:
                call.speak()
                call.end(None)
            self.settle(0.1)
            if all(task.done() for task in self.tasks) and not self.calls:
                break
        self.settle(0.1)
        assert not self.faults, self.faults
        assert [client.outcomes for client in self.clients if len(client.outcomes) != 1] == []
        assert self.sessions.exchanges == 0
        assert (len(self.charges), self.charges.own_us("a"), self.charges.own_us("b")) == (0, (0, 0), (0, 0))
        for worker in self.workers:
            assert (len(worker.requests), worker.requests._by_job) == (0, {})
            assert (worker.admission.queue, worker.admission.line, worker.admission.running) == (
                {},
                [],
                set(),
            )
            assert [outbox.buffered_bytes for outbox in worker.servicer.outboxes] in ([0], [])

    async def _close(self) -> None:
        await self.sessions.close()
        for worker in self.workers:
            worker.requests.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        await self.store.close()


TestSessionProtocol = SessionMachine.TestCase
TestSessionProtocol.settings = settings(stateful_step_count=40)
