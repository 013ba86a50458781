"""DualMap's choice inside somebody else's router: `python examples/embed_choice.py` routes some chats and prints where.

The core is pure: it is told what is booked where and who holds what, and answers with an instance. What a router keeps
beside it is in `Router` here: the rings, the split prefixes, the booked seconds, and what was sent where. One process
keeps these in its memory; several share them (DualMap's own routers in Redis), or each sees its own load only.
"""

from collections import Counter
from dataclasses import dataclass

from dualmap.choose import choose
from dualmap.hash_ring import RingPair
from dualmap.prefix import chunk_hashes, owned_depth, prefix_seed, short_prompt_key
from dualmap.prefix_key import PrefixCounts, key_depth
from dualmap.ttft import PrefillFit, split_prompt
from dualmap.types import ChoiceRequest, ChoiceRule, Decision, InstanceView, Slo

CHUNK_BYTES, BYTES_PER_TOKEN = 2048, 4.0


class Instance:
    """What this router knows of an instance."""

    def __init__(self) -> None:
        self.booked_s = {True: 0.0, False: 0.0}
        """Prefill seconds not done yet, of requests that can be in time and of those that cannot."""
        self.owned: set[int] = set()
        """Chunk hashes of prompts that were sent there. A real one forgets what the engine evicts."""
        self.fit = PrefillFit()


@dataclass(frozen=True)
class Ticket:
    """A request that was sent; give it back when its first token is there."""

    instance: str
    decision: Decision
    uncached_tokens: int
    cached_tokens: int


class Router:
    """Decides by DualMap's rules over state of its own."""

    def __init__(self, names: list[str], slo: Slo) -> None:
        self.instances = {name: Instance() for name in names}
        self.rings = RingPair(dict.fromkeys(names, 1.0))
        self.counts = PrefixCounts()
        self.slo = slo
        self.rule = ChoiceRule()
        self.seed = prefix_seed("my-pool")

    def route(self, prompt: bytes) -> Ticket:
        """Choose an instance and book the prefill there."""
        hashes = chunk_hashes(prompt, self.seed, CHUNK_BYTES)
        # 1. The prefix key, and with it the two candidates; a popular prefix makes the key longer.
        depth = key_depth(hashes, self.counts.splits)
        key = hashes[depth - 1] if depth else short_prompt_key(prompt, self.seed)
        self.counts.observe(hashes, len(self.instances))
        pair = self.rings.candidates(key)
        # 2. The choice, between the pair unless neither is in time.
        tokens = max(round(len(prompt) / BYTES_PER_TOKEN), 1)
        request = ChoiceRequest(tokens, CHUNK_BYTES / BYTES_PER_TOKEN, self.slo.for_prompt(tokens))
        others = (self._view(name, hashes) for name in self.instances if name not in pair)
        decision = choose(request, [self._view(name, hashes) for name in pair], others, self.rule)
        # 3. Book it at once, so that the next decision sees it; expect its chunks to be there from now on.
        chosen, instance = decision.chosen, self.instances[decision.instance]
        instance.booked_s[chosen.feasible] += chosen.own_s
        instance.owned.update(hashes)
        return Ticket(chosen.instance, decision, *split_prompt(request, chosen.owned_chunks))

    def first_token(self, ticket: Ticket, prefill_s: float) -> None:
        """Give the booking back, and learn how fast the instance is."""
        instance, chosen = self.instances[ticket.instance], ticket.decision.chosen
        instance.booked_s[chosen.feasible] -= chosen.own_s
        instance.fit = instance.fit.observe(ticket.uncached_tokens, ticket.cached_tokens, prefill_s)

    def _view(self, name: str, hashes: list[int]) -> InstanceView:
        instance = self.instances[name]
        owned = owned_depth(hashes, instance.owned.__contains__)
        booked = instance.booked_s
        return InstanceView(name, booked[True], booked[False], owned, instance.fit.speed)


def main() -> None:
    """Twelve conversations of four turns over four instances, whose prefill takes 0.1 ms a token."""
    router = Router(["gpu-1", "gpu-2", "gpu-3", "gpu-4"], Slo(base_s=5.0))
    placed: dict[int, list[Ticket]] = {number: [] for number in range(12)}
    for turn in range(1, 5):
        sent = []
        for number, tickets in placed.items():
            # Each turn brings the whole conversation again, and 4 KB more.
            prompt = f"conversation {number} ".encode() * 250 * turn
            tickets.append(router.route(prompt))
            sent.append(tickets[-1])
        for ticket in sent:
            router.first_token(ticket, 0.015 + 1e-4 * ticket.uncached_tokens)
    for number, tickets in placed.items():
        where = ", ".join(f"{ticket.instance} ({ticket.decision.reason})" for ticket in tickets)
        print(f"conversation {number:2}: {where}")
    everything = [ticket for tickets in placed.values() for ticket in tickets]
    cached = sum(ticket.cached_tokens for ticket in everything)
    tokens = cached + sum(ticket.uncached_tokens for ticket in everything)
    print("requests per instance:", dict(sorted(Counter(t.instance for t in everything).items())))
    print(f"prompt tokens found cached: {cached / tokens:.0%}")


if __name__ == "__main__":
    main()
