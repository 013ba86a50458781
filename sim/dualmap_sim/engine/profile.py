"""What one simulated engine can do: its speeds, its sizes, and the cost of one step."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from dualmap_sim.engine.errors import EngineConfigError
from dualmap_sim.engine.text import BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Speeds and sizes of one engine; times are model seconds.

    A prefill of u tokens behind c cached ones costs `prefill_request_s + b*u + c2*u*(c + u/2)` in all. The
    overhead is charged once, with the request's first chunk, and the quadratic term of a chunk counts the
    tokens that earlier chunks computed as cached: the sum over chunks is then the same however it is cut.
    Decodes of a step cost `max(decode_step_s, prefill work) + decode_s_per_seq * sequences`: the weights are
    read once a step, whether for the prefill or for the decodes.
    """

    bytes_per_token: ClassVar[float] = float(BYTES_PER_TOKEN)

    name: str = "default"
    prefill_request_s: float = 0.015
    prefill_s_per_token: float = 90e-6
    prefill_s_per_token2: float = 2.7e-9
    decode_step_s: float = 0.012
    decode_s_per_seq: float = 0.0001
    max_num_batched_tokens: int = 8192
    max_num_partial_prefills: int = 4
    long_prefill_token_threshold: int = 0
    max_num_seqs: int = 256
    num_kv_blocks: int = 26_880
    block_size: int = 16
    max_model_len: int = 163_840
    stream_interval: int = 1
    """Tokens to a chunk of a stream after its first, as vLLM's flag of that name."""
    time_scale: float = 1.0
    seed: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and value < 0:
                raise EngineConfigError(f"{field.name} must not be negative, got {value}")
        for name in (
            "max_num_batched_tokens",
            "max_num_partial_prefills",
            "max_num_seqs",
            "num_kv_blocks",
            "stream_interval",
        ):
            if getattr(self, name) < 1:
                raise EngineConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.block_size < 1 or self.max_model_len < 1:
            raise EngineConfigError("block_size and max_model_len must be at least 1")
        if self.time_scale <= 0 or self.jitter >= 1:
            raise EngineConfigError("time_scale must be above 0 and jitter below 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise EngineConfigError("max_num_batched_tokens must be at least max_num_seqs")

    @property
    def context_limit_tokens(self) -> int:
        """The longest prompt plus output: the model's limit, or what the KV cache holds."""
        return min(self.max_model_len, self.num_kv_blocks * self.block_size)

    def prefill_chunk_s(self, chunk_tokens: int, context_tokens: int) -> float:
        """Seconds to prefill a chunk behind `context_tokens` that are already in the cache."""
        linear = self.prefill_s_per_token * chunk_tokens
        return linear + self.prefill_s_per_token2 * chunk_tokens * (context_tokens + chunk_tokens / 2)

    def prefill_s(self, uncached_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds that a lone request's whole prefill takes."""
        return self.prefill_request_s + self.prefill_chunk_s(uncached_tokens, cached_tokens)

    def step_s(self, prefill_s: float, num_decodes: int) -> float:
        """Seconds of one step that does `prefill_s` of prefill work and decodes `num_decodes` sequences."""
        if not num_decodes:
            return prefill_s
        return max(self.decode_step_s, prefill_s) + self.decode_s_per_seq * num_decodes

    def override(self, **changes: Any) -> "EngineProfile":
        """The same profile with the fields that are not None replaced."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


PROFILES: dict[str, EngineProfile] = {
    profile.name: profile
    for profile in (
        EngineProfile(),
        # Twice the default's cache: how much of a policy's gain is really capacity.
        EngineProfile(name="large-cache", num_kv_blocks=53_760),
        # So little cache that evictions and preemptions happen within a few requests.
        EngineProfile(name="small-cache", num_kv_blocks=512),
        # Half the default's speed in every respect, for pools of unequal hardware.
        EngineProfile(
            name="slow",
            prefill_request_s=0.030,
            prefill_s_per_token=180e-6,
            prefill_s_per_token2=5.4e-9,
            decode_step_s=0.024,
            decode_s_per_seq=0.0002,
        ),
        # The prefill model that the DualMap paper estimates with: seconds a token as it prints them, nothing else.
        # It states no decode speeds and no KV sizes: those are the default's.
        EngineProfile(
            name="paper-7b", prefill_request_s=0.0, prefill_s_per_token=160e-6, prefill_s_per_token2=0.0
        ),
        EngineProfile(
            name="paper-14b", prefill_request_s=0.0, prefill_s_per_token=127e-6, prefill_s_per_token2=0.0
        ),
        # 10,000 prompt tokens a second, however long the prompt: the engines of the comparison with other routers.
        EngineProfile(
            name="linear", prefill_request_s=0.0, prefill_s_per_token=100e-6, prefill_s_per_token2=0.0
        ),
        # For tests of everything around the engine: a thousand tokens take a few milliseconds.
        EngineProfile(
            name="fast",
            prefill_request_s=0.001,
            prefill_s_per_token=2e-6,
            prefill_s_per_token2=1e-11,
            decode_step_s=0.001,
            decode_s_per_seq=1e-6,
        ),
    )
}


def named_profile(name: str) -> EngineProfile:
    """The profile of that name; an unknown name is an EngineConfigError that lists the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(sorted(PROFILES))
        raise EngineConfigError(f"no profile is named {name!r}; there are {known}") from None
