"""Every Redis key of a pool. One hash tag per pool places all of them on one shard of a Cluster.

| key | type | holds | writer | life |
|---|---|---|---|---|
| instances | hash | instance -> registration (JSON) | worker | until its lease is reaped |
| generations | hash | instance -> generation | worker | as above |
| lease:instance:<i>, lease:router:<r> | string | its holder is alive | worker, router | 3 s, renewed each second |
| version | counter | bumped when membership or a registration changes | functions | for ever |
| routers | set | routers that may have charges | router, route function | until reaped |
| charges | hash | f:<i> / i:<i> -> booked microseconds, feasible and infeasible | functions | zero when idle |
| charges:<r> | hash | charge id -> class, microseconds, instance | functions | until released or reaped |
| tenants:<i> | hash | named tenant -> its booked microseconds | functions | zero when idle |
| perf | hash | instance -> speed, running prefill, held (msgpack) | rebalancer leader | until the instance is reaped |
| own:<i> | sorted set | chunk hash -> when written, microseconds | router (expected), worker (by KV events) | dies with the generation |
| keys, keys:current, keys:older, keys:splits | hash, hash, hash, set | prefix counts and splits; its version follows the clock | route function | bounded by count |
| outposts, outposts:older | hash | prefix key -> the instance outside its pair where it went last | route function | bounded by count |
| rate:<t> | string | when a tenant's bucket of requests is full, microseconds | enter function | until it is full |
| inside:<t> | hash | router -> requests of a tenant that it has | enter, leave and inside functions | 10 s, renewed each 2 s |
| turn | counter | decisions of `round-robin` | route function | for ever |
| leader, fence | string, counter | rebalancer lease and fencing token | rebalancer | 3 s; for ever |
| board | string | each instance's last report in short and the last moves (msgpack), for people to look at | rebalancer leader | 5 s |
| stats | hash | moves, reaps, folds | rebalancer | for ever |
"""

LEASE_MS = 3000
HEARTBEAT_S = 1.0
INSIDE_MS = 10_000
"""How long Redis believes what a router said of a tenant's requests; said again by each `reconcile`."""


class PoolKeys:
    """The keys of one pool."""

    __slots__ = ("prefix",)

    def __init__(self, pool: str) -> None:
        self.prefix = f"dm:{{{pool}}}:"

    def key(self, *parts: str) -> str:
        """A key of this pool: `key("own", "w1")` is `dm:{pool}:own:w1`."""
        return self.prefix + ":".join(parts)

    @property
    def instances(self) -> str:
        """Instance -> registration."""
        return self.key("instances")

    @property
    def charges(self) -> str:
        """Booked microseconds per instance and class."""
        return self.key("charges")

    def tenants(self, instance: str) -> str:
        """What named tenants have booked on an instance."""
        return self.key("tenants", instance)

    def router_charges(self, router: str) -> str:
        """Charge id -> class, microseconds, instance."""
        return self.key("charges", router)

    @property
    def perf(self) -> str:
        """Instance -> speed and running prefill."""
        return self.key("perf")

    def own(self, instance: str) -> str:
        """Chunk hashes that an instance holds, by last use."""
        return self.key("own", instance)

    @property
    def routers(self) -> str:
        """Routers that may have charges."""
        return self.key("routers")

    def router_lease(self, router: str) -> str:
        """Lives while the router does."""
        return self.key("lease", "router", router)

    def instance_lease(self, instance: str) -> str:
        """Lives while the instance's worker does."""
        return self.key("lease", "instance", instance)

    def inside(self, tenant: str) -> str:
        """Requests of a tenant that each router has."""
        return self.key("inside", tenant)

    @property
    def board(self) -> str:
        """What the leading rebalancer has heard last."""
        return self.key("board")

    @property
    def hot_keys(self) -> tuple[str, str]:
        """Prefix -> its count and when it was counted, by generation."""
        return self.key("keys", "current"), self.key("keys", "older")

    @property
    def key_counts(self) -> str:
        """How many requests were counted, and the splits' version."""
        return self.key("keys")

    @property
    def outposts(self) -> tuple[str, str]:
        """Prefix key -> its outpost, by generation."""
        return self.key("outposts"), self.key("outposts", "older")

    @property
    def stats(self) -> str:
        """Counters of the rebalancer."""
        return self.key("stats")
