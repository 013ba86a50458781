"""The values that the core takes and returns; times are seconds, sizes are tokens."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an instance was chosen: the word in headers, spans and metric labels alike."""

    AFFINITY = "affinity"
    """The candidate that holds the longer prefix."""
    LOAD = "load"
    """The candidate that answers sooner although it holds no longer prefix."""
    OUTPOST = "outpost"
    """The instance outside the pair to which an earlier request of its key went."""
    ESCAPE = "escape"
    """Another instance of the pool, since no candidate answers in time."""
    ONLY = "only"
    """No other instance could take it."""
    POLICY = "policy"
    """A baseline policy without candidates chose."""
    MOVED = "moved"
    """The rebalancer took it off a hot instance's queue."""
    RETRY = "retry"
    """Its instance was lost before the first byte."""


@dataclass(frozen=True, slots=True)
class Slo:
    """A TTFT objective: a fixed part and a part that grows with the prompt."""

    base_s: float
    per_1k_tokens_s: float = 0.0

    def for_prompt(self, prompt_tokens: int) -> float:
        """The seconds within which a prompt of this length should see its first token."""
        return self.base_s + self.per_1k_tokens_s * prompt_tokens / 1000.0


@dataclass(frozen=True, slots=True)
class PrefillSpeed:
    """Prefill time of one instance: a + b*u + c*u*(cached + u/2) for u uncached tokens after `cached` ones.

    The last term is attention: each new token reads all tokens before it.
    """

    a_s: float
    b_s_per_token: float
    c_s_per_token2: float

    def prefill_s(self, uncached_tokens: float, cached_tokens: float) -> float:
        """Seconds to prefill `uncached_tokens` on top of `cached_tokens` that are already in KV cache."""
        attended = uncached_tokens * (cached_tokens + uncached_tokens / 2)
        return self.a_s + self.b_s_per_token * uncached_tokens + self.c_s_per_token2 * attended


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine's metrics say now."""

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0


@dataclass(frozen=True, slots=True)
class RunningPrefill:
    """The prefill at the head of an engine: its booked cost, how long it runs, and its class."""

    cost_s: float
    elapsed_s: float
    feasible: bool
    """As booked."""
    gives_way_s: float | None = None
    """It is late and gives way to a feasible request within this time; None if it does not."""


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as a decision sees it: booked work, what it holds of this prompt, how fast it prefills."""

    instance: str
    feasible_s: float
    """Booked prefill seconds of requests that can still meet their SLO."""
    infeasible_s: float
    """Booked prefill seconds of the others, which are served after them."""
    owned_chunks: int
    """Leading chunks of this prompt that the instance holds in KV cache, as far as is known."""
    speed: PrefillSpeed
    running: RunningPrefill | None = None
    held: bool = False
    """The engine takes no new prefills now: it has no KV room or too many running sequences."""


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """What a decision needs to know of a request."""

    prompt_tokens: int
    chunk_tokens: float
    """Tokens per chunk: chunk bytes over the pool's bytes per token."""
    slo_s: float


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """The settings of a policy. Sources: DESIGN section 5.4; lambda and escape measured in docs/decisions/0016."""

    policy: str = "dualmap"
    lambda_own: float = 4.0
    """Weight of own prefill work beyond its part in the TTFT: work that lands here delays all that follow."""
    escape_at: float = 0.5
    """Leave the pair when its best expected TTFT exceeds this share of the SLO."""
    escape_margin: float = 0.02
    """... and only for a gain in score over this share of the SLO: estimates are noisy, affinity is not."""
    paper_factor: float = 1.0
    """The `paper` policy leaves the affine candidate when its expected TTFT exceeds this share of the SLO."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one instance would do with one request."""

    instance: str
    wait_s: float
    own_s: float
    ttft_s: float
    score: float
    feasible: bool
    owned_chunks: int
    load_s: float
    """All booked seconds, whatever their class."""

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: who is in time before who is not, then by score."""
        return not self.feasible, self.score


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes and why."""

    chosen: Estimate
    other: Estimate | None
    """Where to move to first: the best other candidate, also after an escape."""
    reason: Reason

    @property
    def instance(self) -> str:
        """The chosen instance."""
        return self.chosen.instance

    @property
    def backup(self) -> str | None:
        """The instance to move to first."""
        return self.other.instance if self.other is not None else None
