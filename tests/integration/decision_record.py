"""Every decision of a live system on record: what the route function was asked, what it saw, what it answered.

The routers load the function library unless the store has it. A recorder that comes first loads the same library
with `route` wrapped: in the one atomic call it notes the arguments, what `views` says right before, and the
reply. The functions themselves are the release's, to the letter.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from dualmap.types import ChoiceRequest, ChoiceRule, InstanceView, PrefillSpeed
from dualmap_wire.redis_functions import (
    Overload,
    RouteCall,
    Routed,
    StaleSplits,
    library,
    parse_route,
    parse_views,
)
from dualmap_wire.redis_keys import PoolKeys

_LIST = "recorded"
_RECORDER = """
local function text_of(item)
  -- What was weighed of each candidate: `seen` has it.
  if type(item) == 'table' then return '' end
  -- All digits: clocks have more than tostring gives.
  return type(item) == 'number' and string.format('%.0f', item) or item
end

local function recorded_route(keys, args)
  local turn = call('GET', keys[1] .. 'turn') or '0'
  local seen = views(keys, { args[2], args[3] })
  local reply = route(keys, args)
  local record = { args[1], args[2], args[3], turn, text_of(#reply) }
  for _, item in ipairs(reply) do record[#record + 1] = text_of(item) end
  for i = 2, #seen do
    for _, item in ipairs(seen[i]) do record[#record + 1] = text_of(item) end
  end
  call('RPUSH', keys[1] .. 'recorded', text_of(#record), unpack(record))
  return reply
end
"""


@dataclass(frozen=True)
class Recorded:
    """One decision."""

    call: RouteCall
    hashes: tuple[int, ...]
    names: tuple[str, ...]
    turn: int
    views: dict[str, InstanceView]
    answer: Routed | StaleSplits | Overload


async def record_decisions(redis: Redis) -> None:
    """Record from now on; before any service has loaded the library."""
    suffix, source = library()
    registration = f"redis.register_function('route_{suffix}', route)"
    assert source.count(registration) == 1
    recorded = registration.replace("', route)", "', recorded_route)")
    await redis.function_load(source.replace(registration, f"{_RECORDER}\n{recorded}"))


async def recorded_decisions(redis: Redis, pool: str) -> list[Recorded]:
    """All decisions so far, in the order in which the store made them."""
    reply: Any = redis.lrange(f"{PoolKeys(pool).prefix}{_LIST}", 0, -1)
    flat = iter(await reply)
    return [_recorded([next(flat) for _ in range(int(size))]) for size in flat]


def _recorded(record: list[bytes]) -> Recorded:
    packed, hashes, pool, turn, num_replied, *rest = record
    call = _call(packed, hashes, pool)
    reply: list[Any] = rest[: int(num_replied)]
    if reply[0] == b"ok":
        reply[4:] = [int(number) if number else [] for number in reply[4:]]
    elif reply[0] == b"overload":
        reply[1] = int(reply[1])
    seen = rest[int(num_replied) :]
    rows = [
        [name, int(f_us), int(i_us), int(owned), perf]
        for name, f_us, i_us, owned, perf in zip(*(seen[at::5] for at in range(5)), strict=True)
    ]
    # As of the clock that the decision went by.
    views = parse_views([reply[-1] if reply[0] == b"ok" else 0, *rows], call.default_speed)
    return Recorded(
        call=call,
        hashes=tuple(int.from_bytes(hashes[at : at + 8], "big") for at in range(0, len(hashes), 8)),
        names=tuple(pool.decode().split("\n")),
        turn=int(turn),
        views={view.instance: view for view in views},
        answer=parse_route(reply),
    )


def _call(packed: bytes, hashes: bytes, pool: bytes) -> RouteCall:
    """The arguments of `route` as the value that they were made from."""
    (
        router, charge_id, policy, prompt_tokens, chunk_tokens, slo_s, lambda_own, escape_at, escape_margin,
        paper_factor, split_version, key_depth, start, pair, count, book, max_wait_s, speed, at_home,
    ) = msgspec.msgpack.decode(packed)  # fmt: skip
    call = RouteCall(
        router=router,
        charge_id=charge_id,
        request=ChoiceRequest(prompt_tokens, chunk_tokens, slo_s),
        rule=ChoiceRule(policy, lambda_own, escape_at, escape_margin, paper_factor),
        hashes=hashes,
        key_depth=key_depth,
        split_version=split_version,
        pair=tuple(pair),
        pool=pool,
        start=start,
        default_speed=PrefillSpeed(*speed),
        max_wait_s=max_wait_s,
        count=count,
        book=book,
        at_home=at_home,
    )
    # A field that is not read here would go unnoticed otherwise.
    assert call.args()[0] == packed
    return call
