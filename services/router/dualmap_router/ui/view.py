"""What the page and `dualmap top` are sent, as JSON. Times are seconds, ages count back from the snapshot."""

import msgspec


class Weighing(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision thought of one candidate."""

    instance: str
    cached_chunks: int
    wait_s: float
    own_s: float
    ttft_s: float
    score: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One placement of a request."""

    instance: str
    reason: str
    cached_chunks: int
    wait_s: float
    own_s: float
    ttft_s: float
    feasible: bool
    alone: bool
    """Decided without Redis."""
    weighed: list[Weighing]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request in flight or one of the last that ended."""

    id: str
    label: str
    model: str | None
    outcome: str
    """`waiting`, `answering`, `answered`, `failed`, `left` or `cut`."""
    status: int
    """HTTP; 0 where nothing was answered."""
    policy: str
    lambda_own: float
    streamed: bool
    came_s: float
    """On the router's own clock: tells requests of one id apart."""
    age_s: float
    """Since it came."""
    took_s: float
    """Until it ended, or until now."""
    prompt_tokens: int
    chunks: int
    slo_s: float
    key: str
    reason: str
    candidates: list[str]
    steps: list[Step]
    """In order: the first decision, then one for every move or retry."""
    ttft_s: float | None
    """Of a stream whose first token came."""
    moves: int
    attempts: int


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance; None where nobody has told."""

    name: str
    state: str
    """`active`, `draining`, `unreachable` (no session from here) or `gone` (its lease has lapsed)."""
    model: str
    weight: float
    kv_tokens: int
    kv_events: bool
    telemetry_age_s: float | None
    wait_s: float
    """What a request that comes now waits before its own prefill."""
    booked_s: float
    """Prefill seconds booked by all routers; by this one alone while Redis is away."""
    late_s: float
    """The part of them that cannot meet its objective."""
    tokens_s: float
    """Prefill speed on a cold prompt of 4,000 tokens."""
    speed_known: bool
    """False while it is only taken for a typical instance."""
    held: bool
    """The engine takes no new prefills now."""
    hot: bool
    """The rebalancer takes requests off its queue."""
    running_s: float | None
    """How long the prefill at its head has run."""
    share: float | None
    """Of this router's requests in the last minutes."""
    requests: int
    open: int
    """Requests of this router there now."""
    queued: int | None = None
    oldest_s: float | None = None
    late: int | None = None
    engine_running: int | None = None
    kv_use: float | None = None
    owned_chunks: int | None = None
    preemptions: int | None = None
    fit_error: float | None = None


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that was here a while ago."""

    name: str
    age_s: float


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """A hot prefix that is a key on the rings."""

    key: str
    share: float
    """Of the recent requests of all routers; of this router's last ones while Redis is away."""
    places: tuple[float, float]
    """Where it falls on either ring, as a share of the way round."""
    candidates: list[str]
    outpost: str | None
    owners: list[str]
    """Instances that hold it, as far as is known."""


class MoveDone(msgspec.Struct, frozen=True, kw_only=True):
    """A move that a worker was asked for."""

    request_id: str
    source: str
    target: str
    benefit_s: float
    outcome: str
    age_s: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One span of the last minutes."""

    requests: int
    attainment: float | None
    p50_s: float | None
    p90_s: float | None
    moves: int


class Minutes(msgspec.Struct, frozen=True, kw_only=True):
    """The last minutes of this router as a whole, and span by span."""

    span_s: float
    requests: int
    failed: int
    rate: float
    """Requests a second over the last ten seconds."""
    attainment: float | None
    p50_s: float | None
    p90_s: float | None
    cached_share: float | None
    """Of the prompt tokens, as decisions expected."""
    moves: int
    reasons: dict[str, int]
    points: list[Point]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment."""

    at_s: float
    """Unix time."""
    router: str
    pool: str
    models: list[str]
    policy: str
    slo_s: float
    store_available: bool
    draining: bool
    board_known: bool
    """The leading rebalancer tells what it hears: queues, KV use and moves are known."""
    leader: str | None
    rings_version: int
    in_flight: int
    instances: list[Instance]
    gone: list[Gone]
    prefixes: list[Prefix]
    num_splits: int
    moves: list[MoveDone]
    minutes: Minutes
    waiting: list[Request]
    """In flight."""
    ended: list[Request]


class Rings(msgspec.Struct, frozen=True, kw_only=True):
    """Both rings in equal slots: who owns the middle of each, as an index into `names`."""

    version: int
    names: list[str]
    first: list[int]
    second: list[int]
