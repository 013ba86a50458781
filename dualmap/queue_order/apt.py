"""Density first: waiting time over the memory blocks of the prompt; who is past the SLO already comes last.

Density counts among the demoted too; ties stay in arrival order. Source: Apt-Serve. Not known: how it turns
memory into blocks with its two kinds of cache, and how far it demotes; here a block is 512 tokens of prompt, and
the demoted are behind all others. Past the SLO is by the clock, not by what is expected: a request that cannot
be in time any more is demoted only when its deadline has gone by, so this order does not put the late last.
"""

from collections.abc import Sequence

from dualmap.queue_order.types import Deficits, Discipline, OrderRule, QueuedRequest

_BLOCK_TOKENS = 512


def _serve(
    waiting: Sequence[QueuedRequest], now_s: float, ready_s: float, rule: OrderRule, deficits: Deficits
) -> Sequence[QueuedRequest]:
    def key(request: QueuedRequest) -> tuple[bool, float]:
        waited_s = now_s - request.arrival_s
        num_blocks = max(-(-request.prompt_tokens // _BLOCK_TOKENS), 1)
        return waited_s > request.slo_s, -waited_s / num_blocks

    return sorted(waiting, key=key)


APT = Discipline(_serve)
