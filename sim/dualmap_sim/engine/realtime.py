"""The model in real time: one task per engine waits for each step's end and wakes the streams.

Model time never drifts from wall time: the next step starts where the last one ended by the model's clock, so
a wake-up that comes late is made good by the following steps. Only an idle engine jumps to the present.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from dualmap_sim.engine.faults import Faults
from dualmap_sim.engine.kv_events import KvDialect, KvPublisher
from dualmap_sim.engine.ledger import Ledger
from dualmap_sim.engine.metrics import latency_histogram, ttft_histogram
from dualmap_sim.engine.model import EngineModel
from dualmap_sim.engine.profile import EngineProfile
from dualmap_sim.engine.sequence import FinishReason, SimRequest, StepOutcome
from dualmap_sim.engine.text import Output


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to start: a profile, a served model, and ports of a host, where 0 takes a free one."""

    profile: EngineProfile = field(default_factory=EngineProfile)
    model: str = "sim-model"
    host: str = "127.0.0.1"
    port: int = 0
    kv_events: bool = True
    kv_port: int = 0
    kv_replay_port: int = 0
    kv_buffer_steps: int = 10_000
    kv_dialect: KvDialect = KvDialect.MAP
    loras: tuple[str, ...] = ()
    exit_on_crash: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens [start, stop) of one choice; `finish` is set with its last ones."""

    choice: int
    start: int
    stop: int
    finish: FinishReason | None


class Generation:
    """One request's sequences, one per choice; use as a context manager, so that leaving early aborts."""

    def __init__(self, engine: "SimEngine", request_id: str, requests: Sequence[SimRequest]) -> None:
        self._engine = engine
        self._request_id = request_id
        self._requests = requests
        self._changed = asyncio.Event()
        self._opened_s = engine.wall_s()
        self.produced = [0] * len(requests)
        self._finish: list[FinishReason | None] = [None] * len(requests)
        self.num_prompt_tokens = 0
        self.cached_tokens = 0
        self.answered = False

    def __enter__(self) -> "Generation":
        for choice, request in enumerate(self._requests):
            self.num_prompt_tokens = self._engine.submit(request, self, choice)
        self._engine.ledger.started(self._request_id)
        return self

    def __exit__(self, *_: object) -> None:
        for request in self._requests:
            self._engine.abort(request.request_id)
        if self.answered:
            self._engine.ledger.finished(self._request_id)
        else:
            self._engine.ledger.aborted(self._request_id)

    def token(self, choice: int, cached_tokens: int, finish: FinishReason | None) -> None:
        """The engine produced one more token of a choice."""
        now_s = self._engine.wall_s()
        if self.produced[choice] == 0:
            self._engine.ttft.observe(now_s - self._opened_s)
            if choice == 0:
                self.cached_tokens = cached_tokens
        self.produced[choice] += 1
        if finish is not None:
            self._finish[choice] = finish
            self._engine.latency.observe(now_s - self._opened_s)
        # As vLLM: the first token at once, then every so many, and the last.
        produced, interval = self.produced[choice], self._engine.profile.stream_interval
        if finish is not None or produced == 1 or produced % interval == 0:
            self._changed.set()

    async def deltas(self) -> AsyncIterator[Delta]:
        """What is new, as it comes; a slow reader gets several tokens at once."""
        sent = [0] * len(self.produced)
        while True:
            await self._changed.wait()
            self._changed.clear()
            for choice, stop in enumerate(self.produced):
                if stop > sent[choice]:
                    start, sent[choice] = sent[choice], stop
                    yield Delta(choice, start, stop, self._finish[choice])
            if all(self._finish) and sent == self.produced:
                return


class SimEngine:
    """One running engine: the model, its clock, its books, its faults."""

    def __init__(self, spec: EngineSpec, publisher: KvPublisher) -> None:
        self.spec = spec
        self.profile = spec.profile
        self.model = EngineModel(spec.profile, record_cache_events=spec.kv_events)
        self.faults = Faults(spec.profile.seed)
        self.ledger = Ledger()
        self.ttft = ttft_histogram()
        self.latency = latency_histogram()
        self.ended: Counter[str] = Counter({reason.value: 0 for reason in FinishReason})
        self.publisher = publisher
        self.num_steps = 0
        self.max_lag_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._origin_s = self._loop.time()
        self._model_clock_s = 0.0
        self._wake = asyncio.Event()
        self._listeners: dict[str, tuple[Generation, int]] = {}
        self._next_key = 0

    def wall_s(self) -> float:
        """Wall time of this process's loop."""
        return self._loop.time()

    def new_key(self) -> str:
        """A name for a sequence that no other one in this engine has."""
        self._next_key += 1
        return f"seq-{self._next_key}"

    def generate(
        self,
        request_id: str,
        prompt: bytes,
        outputs: Sequence[tuple[Output, int, FinishReason]],
        salt: str = "",
        session: str | None = None,
    ) -> Generation:
        """One sequence per (output, number of tokens, how it ends), all with the same tokenized prompt."""
        requests = [
            SimRequest(self.new_key(), prompt, tokens, output, salt, finish_reason=finish, session=session)
            for output, tokens, finish in outputs
        ]
        return Generation(self, request_id, requests)

    def submit(self, request: SimRequest, generation: Generation, choice: int) -> int:
        """Hand one sequence to the model and return its number of prompt tokens."""
        num_prompt_tokens = self.model.submit(request, self._now_s())
        self._listeners[request.request_id] = (generation, choice)
        self._wake.set()
        return num_prompt_tokens

    def abort(self, key: str) -> None:
        """Take a sequence out of the model, if it is still there; its blocks are free at once."""
        if self._listeners.pop(key, None) is not None and self.model.abort(key):
            self.ended[FinishReason.ABORT] += 1

    def clear_cache(self) -> None:
        """Forget all cached prefixes and say so."""
        self.publisher.publish(self.model.clear_cache())

    @property
    def num_listeners(self) -> int:
        """Sequences that somebody waits for."""
        return len(self._listeners)

    async def run(self) -> None:
        """Step the model until cancelled."""
        while True:
            if not self.model.has_work:
                self._wake.clear()
                await self._wake.wait()
                self._model_clock_s = max(self._model_clock_s, self._now_s())
            self.model.slow_down = self.faults.settings.slow_down
            step = self.model.start_step(self._model_clock_s)
            if step is None:
                continue
            await self._sleep_until(step.end_s)
            self._model_clock_s = step.end_s
            self._deliver(self.model.end_step(step))

    def _now_s(self) -> float:
        return (self._loop.time() - self._origin_s) * self.profile.time_scale

    async def _sleep_until(self, model_s: float) -> None:
        delay_s = self._origin_s + model_s / self.profile.time_scale - self._loop.time()
        self.max_lag_s = max(self.max_lag_s, -delay_s)
        # Even when late, hand over once: requests and disconnects must get in between two steps.
        await asyncio.sleep(max(delay_s, 0.0))

    def _deliver(self, outcome: StepOutcome) -> None:
        self.num_steps += 1
        self.publisher.publish(outcome.cache_events)
        for token in outcome.tokens:
            generation, choice = self._listeners[token.request_id]
            if token.finish is not None:
                del self._listeners[token.request_id]
                self.ended[token.finish] += 1
            generation.token(choice, token.cached_tokens, token.finish)
