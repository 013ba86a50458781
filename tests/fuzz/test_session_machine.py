"""The session protocol as a state machine: no order of events starts a request twice, loses it or leaves anything.

Nor does a client get another text than its own, or some of it twice, whatever dies in the middle of its stream.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dualmap_wire.v1 import worker_pb2 as pb

from .session_engine import LENGTH
from .session_world import NAMES, SessionWorld, rogue_submit

_WHICH = st.integers(0, 1)
_MANY = st.integers(0, 99)


class SessionMachine(RuleBasedStateMachine):
    """Rules are what clients, engines, workers, the rebalancer and the network do."""

    world: SessionWorld | None = None

    @initialize(
        cuts=st.lists(st.integers(1, 80), max_size=4), kept=st.sampled_from([1 << 20, 1 << 20, 1 << 20, 300])
    )
    def build(self, cuts: list[int], kept: int) -> None:
        self.world = self.it = SessionWorld(cuts, kept)

    # Clients

    @precondition(lambda self: len(self.it.flights) < 25)
    @rule(
        kinds=st.lists(
            st.tuples(
                st.sampled_from(["ids", "text", "chat"]),
                st.sampled_from([True, True, True, False]),
                st.sampled_from([True, True, True, True, False]),
                st.booleans(),
            ),
            min_size=1,
            max_size=5,
        ),
        twin=st.booleans(),
        tokens=st.sampled_from([10, 3000, 60_000]),
    )
    def some_ask(self, kinds: list[tuple[str, bool, bool, bool]], twin: bool, tokens: int) -> None:
        for form, streamed, queued, usage in kinds:
            self.it.ask(
                form, streamed=streamed, queued=queued, twin=twin, usage=usage and streamed, tokens=tokens
            )
            self.it.settle(0)
        self.it.settle(0.01)

    @precondition(lambda self: self.it.flights)
    @rule(which=_MANY)
    def leaves(self, which: int) -> None:
        self.it.flights[which % len(self.it.flights)].client_gone()

    # Engines

    @precondition(lambda self: self.it.calls)
    @rule(
        which=_MANY,
        pieces=st.integers(0, 3),
        then=st.sampled_from(["waits", "ends", "dies"]),
    )
    def engine_answers(self, which: int, pieces: int, then: str) -> None:
        call = self.it.calls[which % len(self.it.calls)]
        call.speak(pieces)
        self.it.settle(0.01)
        if then == "ends":
            call.end()
        elif then == "dies":
            call.die("between")

    @precondition(lambda self: self.it.streams)
    @rule(
        which=_MANY,
        pieces=st.lists(st.integers(1, LENGTH), min_size=1, max_size=3),
        how=st.sampled_from(["between", "within", "saying so"]),
    )
    def engine_dies_in_the_middle_of_a_stream(self, which: int, pieces: list[int], how: str) -> None:
        """Of one that may go on elsewhere: before its last token, behind it, or behind its end mark."""
        call = self.it.streams[which % len(self.it.streams)]
        for together in pieces:
            call.speak(together)
            self.it.settle(0.01)
        if not call.over:
            call.die(how)

    @rule(which=_WHICH, how=st.sampled_from(["at once", "at once", "dies", "hangs"]))
    def engine_tokenizes(self, which: int, how: str) -> None:
        self.it.workers[which].engine.tokenizes = how
        self.it.always_told_tokens = self.it.always_told_tokens and how != "hangs"

    # Workers

    @precondition(lambda self: self.it.waiting)
    @rule(place=_MANY, whither=st.sampled_from([*NAMES, "nobody"]))
    def rebalancer_moves(self, place: int, whither: str) -> None:
        worker, request_id = self.it.waiting[place % len(self.it.waiting)]
        self.it.call(worker.requests.move, request_id, whither)
        self.it.call(worker.requests.pump)

    @rule(which=_WHICH, away=st.booleans())
    def engine_goes_away_or_returns(self, which: int, away: bool) -> None:
        requests = self.it.workers[which].requests
        if away:
            self.it.call(requests.lose_engine)
        requests.engine_away = False

    @rule(which=_WHICH)
    def worker_hands_back_its_queue(self, which: int) -> None:
        self.it.call(self.it.workers[which].requests.drain)
        self.it.settle(0.0)
        self.it.workers[which].requests.draining = False

    # The network

    @rule(which=_WHICH)
    def session_is_lost(self, which: int) -> None:
        for link in [link for link in self.it.loop.links if link.port == which + 1]:
            self.it.loop.call_soon(link.abort)

    @rule(which=_WHICH, up=st.sampled_from([True, True, False]))
    def worker_is_reachable_or_not(self, which: int, up: bool) -> None:
        worker = self.it.workers[which]
        if up:
            self.it.loop.hosts[worker.port] = worker.servicer
        else:
            self.it.loop.hosts.pop(worker.port, None)
            self.session_is_lost(which)

    @precondition(lambda self: self.it.loop.links)
    @rule(
        stream=st.integers(0, 30),
        what=st.sampled_from(
            [pb.Event(data=b"x"), pb.Event(end=pb.End()), pb.Event(moved=pb.Moved(target="b")), pb.Event(),
             pb.Event(failed=pb.Failed(kind=pb.Failed.ENGINE_LOST)), pb.Event(head=pb.Head(status=200))]
        ),
    )  # fmt: skip
    def an_event_comes_late(self, stream: int, what: pb.Event) -> None:
        """For a stream that has ended, or never was."""
        for link in self.it.loop.links:
            session: Any = self.it.sessions.get(NAMES[link.port - 1])
            if stream not in session._exchanges and stream < session._streams.__reduce__()[1][0]:
                late = pb.Event(stream=stream)
                late.MergeFrom(what)
                self.it.run(link.write_frame(pb.WorkerFrame(events=[late]).SerializeToString()))

    @rule(which=_WHICH, stream=st.integers(1, 2), cancels=st.booleans())
    def a_router_repeats_a_stream(self, which: int, stream: int, cancels: bool) -> None:
        """Another router, which does not keep to the protocol."""
        requests = self.it.workers[which].requests
        self.it.call(requests.submit, rogue_submit(stream), "rogue", self.it.rogue)
        if cancels:
            self.it.call(requests.cancel, self.it.rogue, stream)

    # Time

    @rule(turns=st.integers(0, 6))
    def turns_pass(self, turns: int) -> None:
        for _ in range(turns):
            self.it.settle(0)

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.it.settle(seconds)

    # What holds at any time

    @invariant()
    def all_is_well(self) -> None:
        if self.world is not None:
            self.world.check()

    def teardown(self) -> None:
        if self.world is not None:
            try:
                self.world.end()
            finally:
                self.world.close()


TestSessionProtocol = SessionMachine.TestCase
TestSessionProtocol.settings = settings(stateful_step_count=40)
