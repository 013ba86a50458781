"""Leftovers: what is too little anywhere is one, too."""

import redis

from dualmap_cli.leftovers import find_leftovers
from dualmap_sim.embedded_store import EmbeddedStore
from dualmap_wire.redis_keys import PoolKeys


async def test_a_debt_does_not_make_up_for_a_charge(store: EmbeddedStore) -> None:
    assert (await find_leftovers(store.url, "p", [])).clean
    with redis.Redis.from_url(store.url) as client:
        client.hset(PoolKeys("p").charges, mapping={"f:a": 2_000_000, "f:b": -2_000_000})
    left = await find_leftovers(store.url, "p", [])
    assert (left.clean, left.charges_s) == (False, 4.0)
