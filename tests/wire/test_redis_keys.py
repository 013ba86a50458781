"""The table of `redis_keys` names every key there is, with its type."""

import itertools
import re
from pathlib import Path

from dualmap.limits import Limits
from dualmap.outposts import MAX_OUTPOSTS
from dualmap.types import ChoiceRule
from dualmap_wire import redis_keys
from dualmap_wire.redis_functions import StaleSplits
from dualmap_wire.redis_keys import HEARTBEAT_S, LEASE_MS, PoolKeys
from tests.wire.pool import WirePool, perf, route_call

TYPES = {"hash": "hash", "string": "string", "counter": "string", "set": "set", "sorted set": "zset"}


def table(text: str) -> list[list[str]]:
    """The rows of the table of keys in a text, without its marks of code."""
    lines = text.splitlines()
    try:
        first = lines.index("| key | type | holds | writer | life |") + 2
    except ValueError:
        return []
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def documented() -> dict[str, str]:
    """Key pattern -> type, from the module's table."""
    found = {}
    for cells in table(redis_keys.__doc__ or ""):
        names = cells[0].split(", ")
        types = cells[1].split(", ")
        types = types * len(names) if len(types) == 1 else types
        for name, kind in zip(names, types, strict=True):
            pattern = re.escape(name)
            for placeholder in re.findall(r"<\w+>", name):
                pattern = pattern.replace(re.escape(placeholder), ".+")
            found[pattern] = TYPES[kind]
    return found


def test_every_key_of_a_live_pool_is_documented(pool: WirePool) -> None:
    table = documented()
    for name in ("w1", "w2"):
        pool.register(name)
    pool.members("r1")
    fence = pool.lead("leader")
    assert pool.fold(fence, ("w1", 1, perf())) == 1
    # Past one rotation, with a hot prefix, so that every count exists.
    version = 0
    for i in range(2100):
        hashes = [1, 1000 + i]
        call = route_call(
            ["w1", "w2"],
            f"c{i}@acme",
            hashes=hashes,
            key_depth=2 if version else 1,
            split_version=version,
            count=True,
            book=i < 3,
            rule=ChoiceRule("round-robin"),
        )
        got = pool.route(call)
        if isinstance(got, StaleSplits):
            version = got.version
    for key in range(MAX_OUTPOSTS + 1):
        pool.route(route_call(["w1"], hashes=[key], key_depth=1, at_home=False))
    pool.own_add("w1", [1, 2])
    pool.enter(Limits(1.0, 1, 1))
    pool.client.hincrby(pool.keys.stats, "moves", 1)
    pool.client.set(pool.keys.board, b"")

    seen = set()
    for key in pool.client.scan_iter():
        name = key.decode().removeprefix(pool.keys.prefix)
        matches = [pattern for pattern in table if re.fullmatch(pattern, name)]
        assert matches, f"{name} is not documented"
        kinds = {table[pattern] for pattern in matches}
        assert pool.client.type(key).decode() in kinds
        seen.update(matches)
    assert seen == set(table), "documented, and never there"


def test_operators_read_the_same_table() -> None:
    said = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert table(said) == table(redis_keys.__doc__ or "") != []


def test_keys_of_a_pool_carry_one_hash_tag() -> None:
    keys = PoolKeys("llama")
    assert keys.prefix == "dm:{llama}:"
    assert keys.key("own", "w1") == keys.own("w1") == "dm:{llama}:own:w1"
    assert keys.instances == "dm:{llama}:instances"
    assert keys.charges == "dm:{llama}:charges"
    assert keys.tenants("w1") == "dm:{llama}:tenants:w1"
    assert keys.router_charges("r1") == "dm:{llama}:charges:r1"
    assert keys.perf == "dm:{llama}:perf"
    assert keys.routers == "dm:{llama}:routers"
    assert keys.router_lease("r1") == "dm:{llama}:lease:router:r1"
    assert keys.instance_lease("w1") == "dm:{llama}:lease:instance:w1"
    assert keys.board == "dm:{llama}:board"
    assert keys.key_counts == "dm:{llama}:keys"
    assert keys.hot_keys == ("dm:{llama}:keys:current", "dm:{llama}:keys:older")
    assert keys.outposts == ("dm:{llama}:outposts", "dm:{llama}:outposts:older")
    assert keys.stats == "dm:{llama}:stats"


def test_a_lease_outlives_two_lost_heartbeats() -> None:
    assert LEASE_MS >= 3 * HEARTBEAT_S * 1000
