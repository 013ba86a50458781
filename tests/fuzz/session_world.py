"""The world of the session machine: one router, two workers, their clients; what holds of them at any time.

The router has its pilot, sessions, charges, answers and records, the workers their servicers, queues and flows, joined
by `memory_net`. Redis is away: the router decides alone.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import msgspec

from dualmap.admission import Admission
from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderRule
from dualmap_router.answer import Answer
from dualmap_router.attempt import Attempts
from dualmap_router.breakers import Breakers
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
from dualmap_router.stream_record import StreamRecords
from dualmap_service.access import AccessSettings
from dualmap_service.grpc_access import PlainGrpc
from dualmap_service.registry import Member, Membership
from dualmap_service.store import Store
from dualmap_service.tracing import Tracing
from dualmap_wire.telemetry import Registration
from dualmap_wire.v1 import worker_pb2 as pb
from dualmap_worker.outbox import Outbox
from dualmap_worker.relay import Requests
from dualmap_worker.servicers import DataServicer
from dualmap_worker.trace import FlowTraces

from .memory_net import MemoryLoop
from .session_client import ClientSide, check_answer
from .session_engine import Call, ScriptedEngine, ask, number_of

NAMES = ("a", "b")
MAX_ATTEMPTS = 3
DARK_S = 10.0
"""What a stream waits for instances, less what connecting takes."""
_PATHS = {"chat": "/v1/chat/completions", "ids": "/v1/completions", "text": "/v1/completions"}


class WorkerSide:
    """A worker: servicer, queue and flows in front of a scripted engine."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.engine = ScriptedEngine(name)
        self.admission = Admission(OrderRule(), 2048, 3, 0.97, PreemptRule(min_run_s=0.01))
        traces = FlowTraces(Tracing("worker", name, "", 0.0), name)
        self.requests = Requests(self.engine, self.admission, 4, lambda: None, traces)  # type: ignore[arg-type]
        self.servicer = DataServicer(self.requests, "p", 1 << 20, 0.0)
        registration = Registration(
            instance=name, pool="p", model="m", grpc_address=f"h:{port}", telemetry_address="", generation=1
        )
        self.member = Member(registration, True, None)

    def check(self) -> None:
        """Its books agree with each other, and every request that its engine got had a meaning."""
        requests, admission = self.requests, self.admission
        jobs = {flow.job.request_id for flow in requests._flows.values()}
        assert jobs == set(requests._by_job)
        assert set(admission.queue) <= jobs
        assert not admission.running & admission.queue.keys()
        assert len({job.request_id for job in admission.line}) == len(admission.line)
        assert requests.idle.is_set() == (not requests._flows)
        assert self.engine.misread == []

    def started(self) -> list[int]:
        """The requests that it has started; not those that are being aborted, or whose session is gone."""
        flows = [
            flow
            for flow in self.requests._flows.values()
            if flow._task is not None and not flow._abandoned and not flow.outbox.closed
        ]
        return [number for flow in flows if (number := number_of(flow.submit.body)) is not None]

    def assert_empty(self) -> None:
        """Nothing is left in it."""
        assert (len(self.requests), self.requests._by_job) == (0, {})
        assert (self.admission.queue, self.admission.line, self.admission.running) == ({}, [], set())
        assert [outbox.buffered_bytes for outbox in self.servicer.outboxes] in ([0], [])


class SessionWorld:
    """Everything, and the clock that it runs by."""

    def __init__(self, cuts: Sequence[int], max_record_bytes: int) -> None:
        self.loop = MemoryLoop(cuts)
        # The same orders must have the same end: ages decide who goes first, and made-up ids between equals.
        made_up = itertools.count()
        self._patches = (
            mock.patch.object(time, "monotonic", self.loop.time),
            mock.patch.object(secrets, "token_hex", lambda size: f"{next(made_up):0{2 * size}x}"),
        )
        for patch in self._patches:
            patch.start()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.clients: list[ClientSide] = []
        self.flights: list[Flight] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.records = StreamRecords(max_record_bytes, 3 * max_record_bytes)
        self.rogue = Outbox(1 << 20, 0.0)
        """Of another router, which does not keep to the protocol."""
        self.always_told_tokens = True
        self.dark_s = 0.0
        """How long no worker could be reached, all times together."""
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
        resumer = Resumer(self.placement, Models())
        metrics, breakers = RouterMetrics(), Breakers(5, 5.0)
        attempts = Attempts(self.placement, self.sessions, metrics, breakers, lambda flight: None)
        self.pilot = Pilot(
            self.placement,
            self.sessions,
            attempts,
            metrics,
            resumer,
            breakers,
            MAX_ATTEMPTS,
            timeout_s=600.0,
        )
        self.sessions.follow(self.membership)
        self._changed()

    def _changed(self) -> None:
        self.placement.pool.update(self.membership, self.sessions.reachable)

    # Time

    def run(self, body: Any) -> Any:
        return self.loop.run_until_complete(body)

    def settle(self, for_s: float) -> None:
        self.dark_s += 0.0 if self.loop.hosts else for_s
        self.run(asyncio.sleep(for_s))

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Within the loop."""

        async def call() -> None:
            function(*args)

        self.run(call())

    # What is under way

    @property
    def calls(self) -> list[Call]:
        """What engines work for."""
        return [call for worker in self.workers for call in worker.engine.calls if not call.over]

    @property
    def streams(self) -> list[Call]:
        """Those of them that another engine could continue."""
        kept = {number for number, flight in enumerate(self.flights) if flight.record is not None}
        return [call for call in self.calls if call.number in kept]

    @property
    def waiting(self) -> list[tuple[WorkerSide, str]]:
        """What workers hold back."""
        return [(worker, request_id) for worker in self.workers for request_id in worker.admission.queue]

    # Clients

    def ask(self, form: str, *, streamed: bool, queued: bool, twin: bool, usage: bool, tokens: int) -> None:
        """One more request; a `twin` has the id of others, `tokens` are what its prefill is taken to be."""
        number = len(self.flights)
        body, path = ask(number, form, streamed, usage), _PATHS[form]
        prompt = self.placement.prompt(parse_inference(path, body), "", None)
        client = ClientSide(number, usage)
        record = self.records.open() if streamed and queued else None
        sink = Answer(client, streamed, 1 << 20, lambda _: (), lambda _: None, record)  # type: ignore[arg-type]
        flight = Flight(
            request_id="same" if twin else f"r{number}",
            method="POST",
            path=path,
            label=path,
            headers=[],
            body=body,
            first_body=body,
            started_s=time.monotonic(),
            sink=sink,
            prompt=msgspec.structs.replace(prompt, num_tokens=tokens) if queued else None,
            slo_s=5.0,
            streamed=streamed,
            relay=sink.relay if streamed else None,
            hide_usage=streamed and not usage,
            record=record,
        )
        self.clients.append(client)
        self.flights.append(flight)
        self.tasks.append(self.loop.create_task(self._fly(flight, client)))

    async def _fly(self, flight: Flight, client: ClientSide) -> None:
        try:
            await self.pilot.fly(flight)
        except ApiError as error:
            client.fail(error)
        except ClientGoneError:
            assert flight.gone
            client.outcomes.append("gone")
        finally:
            if flight.record is not None:
                flight.record.close()

    # What holds at any time

    def check(self) -> None:
        """Nothing is inconsistent, started twice or answered wrongly, and what breaks off has a reason."""
        assert not self.faults, self.faults
        started: list[int] = []
        for worker in self.workers:
            worker.check()
            started += worker.started()
        over = {number for number, task in enumerate(self.tasks) if task.done() or self.flights[number].gone}
        twice = {number for number in started if number >= 0 and started.count(number) > 1} - over
        assert not twice, twice
        for client, flight, task in zip(self.clients, self.flights, self.tasks, strict=True):
            assert len(client.outcomes) == task.done(), client.outcomes
            check_answer(client)
            assert "aborted" not in client.outcomes
            if "broken" in client.outcomes:
                assert self._may_break(flight), "a stream that could have gone on"

    def _may_break(self, flight: Flight) -> bool:
        """Whether an answer may end in its middle: nobody knows its text or tokens, too many failed, all were away."""
        kept = flight.record is not None and flight.record._whole
        too_long = flight.attempts >= MAX_ATTEMPTS or self.dark_s > DARK_S
        return not kept or not self.always_told_tokens or too_long

    # The end

    def end(self) -> None:
        """Everything comes back and answers: every request has one end, and nothing is left."""
        for worker in self.workers:
            self.loop.hosts[worker.port] = worker.servicer
            worker.requests.draining = worker.requests.engine_away = False
            worker.engine.tokenizes = "at once"
        self.settle(6.0)
        for worker in self.workers:
            self.call(worker.requests.cancel_all, self.rogue)
        for _ in range(200):
            for call in self.calls:
                call.end()
            self.settle(0.1)
            if all(task.done() for task in self.tasks) and not self.calls:
                break
        self.settle(0.1)
        self.check()
        assert [client.outcomes for client in self.clients if len(client.outcomes) != 1] == []
        assert self.sessions.exchanges == 0
        assert self.records.held_bytes == 0
        assert (len(self.charges), self.charges.own_us("a"), self.charges.own_us("b")) == (0, (0, 0), (0, 0))
        for worker in self.workers:
            worker.assert_empty()

    def close(self) -> None:
        """Stop what still runs."""
        self.run(self._close())
        self.loop.close()
        for patch in self._patches:
            patch.stop()

    async def _close(self) -> None:
        await self.sessions.close()
        for worker in self.workers:
            worker.requests.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        await self.store.close()


def rogue_submit(stream: int) -> pb.Submit:
    """What a router sends that does not keep to the protocol: nobody's request."""
    placement = pb.Placement(prompt_tokens=500, slo_s=5.0)
    body = ask(-1, "ids", True, False)
    return pb.Submit(
        stream=stream, request_id="rogue", body=body, queued=True, streamed=True, placement=placement
    )
