"""One request inside the engine model, and what the model says about it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from dualmap_sim.engine.block_cache import CacheEvent, extend_chain, root_hash
from dualmap_sim.engine.text import BYTES_PER_TOKEN


class FinishReason(StrEnum):
    """Why a sequence ended; also the label of vllm:request_success_total."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class TokenSource(Protocol):
    """Whatever knows the generated tokens; the cache wants them for the blocks they fill."""

    def token_bytes(self, start: int, stop: int) -> bytes:
        """Tokens [start, stop) as 4 bytes each."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request to the model: `prompt` is tokenized, 4 bytes a token.

    A simulator whose traces carry block hashes leaves the prompt empty and gives `num_prompt_tokens` and
    `block_hashes`; without `output`, generated tokens are not cached.
    """

    request_id: str
    prompt: bytes = b""
    max_new_tokens: int = 1
    output: TokenSource | None = None
    salt: str = ""
    num_prompt_tokens: int = 0
    block_hashes: tuple[int, ...] | None = None
    finish_reason: FinishReason = FinishReason.LENGTH
    session: str | None = None
    """What cache events call it: its X-Session-ID."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A sequence produced one token."""

    request_id: str
    index: int
    cached_tokens: int
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step: from `start_s` it takes `duration_s`; the tokens come at its end, the cache events at its start."""

    start_s: float
    duration_s: float
    prefill_tokens: int
    num_decodes: int
    tokens: tuple[TokenEvent, ...]
    cache_events: tuple[CacheEvent, ...]

    @property
    def end_s(self) -> float:
        """When the step is over."""
        return self.start_s + self.duration_s


class Sequence:
    """A request with its progress: `num_computed` of its tokens have their KV in `blocks`."""

    __slots__ = (
        "arrived_s",
        "blocks",
        "cached_tokens",
        "generated",
        "hashes",
        "num_committed",
        "num_computed",
        "num_prompt_tokens",
        "request",
        "root",
        "started",
    )

    def __init__(self, request: SimRequest, block_size: int, now_s: float) -> None:
        self.request = request
        self.root = root_hash(request.salt)
        self.num_prompt_tokens = request.num_prompt_tokens or len(request.prompt) // BYTES_PER_TOKEN
        if request.block_hashes is not None:
            self.hashes = list(request.block_hashes)
        else:
            self.hashes = extend_chain(self.root, request.prompt, block_size * BYTES_PER_TOKEN)
        self.arrived_s = now_s
        self.generated = 0
        self.cached_tokens = 0
        self.num_computed = 0
        self.num_committed = 0
        self.blocks: list[int] = []
        self.started = False

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return self.num_prompt_tokens + self.generated

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the newest token is still to be computed."""
        return self.num_tokens - self.num_computed > 1 or self.generated == 0

    def tokens(self, start: int, stop: int) -> bytes:
        """The tokens [start, stop) of prompt and output, as far as they are known."""
        prompt_bytes = len(self.request.prompt)
        if not prompt_bytes:
            return b""
        first, last = start * BYTES_PER_TOKEN, stop * BYTES_PER_TOKEN
        data = self.request.prompt[first : min(last, prompt_bytes)]
        if last > prompt_bytes and self.request.output is not None:
            new_from = max(start - self.num_prompt_tokens, 0)
            data += self.request.output.token_bytes(new_from, stop - self.num_prompt_tokens)
        return data
