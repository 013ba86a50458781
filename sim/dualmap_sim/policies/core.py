"""The policies of the core, as the routers run them."""

from collections.abc import Iterator

from dualmap.choose import choose
from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.flight import Choice, Flight
from dualmap_sim.fleet.router import Sight


class CorePolicy:
    """`dualmap.choose` over what a router sees."""

    def __init__(self, rule: ChoiceRule) -> None:
        self._rule = rule

    def place(self, flight: Flight, sight: Sight) -> Choice:
        """Decide as the route function does."""
        arrival, pool = flight.arrival, sight.pool
        key = pool.key(arrival)
        home = pool.candidates(key, arrival.adapter)
        pair = [index for index in home if index in sight.usable] or [sight.usable[key % len(sight.usable)]]
        if not flight.moves and arrival.chunks:
            pool.counts.observe(arrival.chunks, len(sight.usable))
        request = ChoiceRequest(arrival.input_tokens, CHUNK_TOKENS, flight.slo_s)
        pool.turn += 1
        decision = choose(
            request,
            [sight.view(flight, index, sight.depth(arrival, index)) for index in pair],
            self._others(flight, sight, pair, key),
            self._rule,
            pool.turn,
            self._outpost(flight, sight, pair, key),
        )
        index_of = pool.index_of
        if self._has_outposts(flight) and index_of[decision.instance] not in home:
            pool.outposts.put(key, decision.instance)
        chosen, other = decision.chosen, decision.other
        return Choice(
            index=index_of[chosen.instance],
            reason=decision.reason,
            feasible=chosen.feasible,
            own_s=chosen.own_s,
            depth=chosen.owned_chunks,
            ttft_s=chosen.ttft_s,
            backup=index_of[other.instance] if other is not None else None,
            backup_depth=other.owned_chunks if other is not None else 0,
        )

    def _outpost(self, flight: Flight, sight: Sight, pair: list[int], key: int) -> InstanceView | None:
        name = sight.pool.outposts.get(key) if self._has_outposts(flight) else None
        if name is None:
            return None
        index = sight.pool.index_of[name]
        if index in pair or index not in sight.usable:
            return None
        return sight.view(flight, index, sight.depth(flight.arrival, index))

    def _has_outposts(self, flight: Flight) -> bool:
        return self._rule.policy == "dualmap" and bool(flight.arrival.chunks)

    def _others(self, flight: Flight, sight: Sight, pair: list[int], key: int) -> Iterator[InstanceView]:
        usable = sight.usable
        start = key % len(usable)
        depths = sight.depths(flight.arrival)
        for place in range(len(usable)):
            index = usable[(start + place) % len(usable)]
            if index not in pair:
                yield sight.view(flight, index, depths[index])
