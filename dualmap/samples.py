"""Samples of the engine's prefill speed: from the first bytes that show, and from what the engine tells at the end.

An answer that is not streamed shows no first byte: what it took and the next first byte are one sample. So
are prefills whose first bytes come together. What was aborted half-way spoils the sample that follows it.
"""

from dualmap.job import Job, PrefillGroup
from dualmap.ttft import Prefill, SpeedTracker

_MAX_UNSEEN = 16
"""Unstreamed prefills in a row that one first byte may stand for; then the estimate is taken for seen."""
_TOGETHER = 0.5
"""A first byte that comes within this share of its own expected prefill was computed with the one before.

Expected by the fit: by the quick factor every prefill would look like that once a frozen process or a slow moment has
raised it, and as nothing would be a sample any more nothing would lower it again.
"""
_MOST_TOGETHER = 256
"""More than one step of an engine ends; the fit itself may be too slow as well."""


class PrefillSamples:
    """What was seen of prefills, gathered into the speed that `tracker` fits."""

    def __init__(self) -> None:
        self.tracker = SpeedTracker()
        self._group = PrefillGroup()
        self._unseen: list[Job] = []
        self._unseen_since_s = 0.0
        self._tells_cached = False

    def first_byte(self, job: Job, now_s: float, spoilt: bool) -> None:
        """A streamed prefill is over; `spoilt` when the engine may have computed something else in its time."""
        assert job.prefill_s is not None
        apart = job.prefill_s > _TOGETHER * job.own_s(self.tracker.fit.speed)
        if spoilt or self._unseen or apart or len(self._group.jobs) >= _MOST_TOGETHER:
            self.close_group()
        self._group.spoilt = self._group.spoilt or spoilt
        seconds = now_s - self._unseen_since_s if self._unseen else job.prefill_s
        self._group.add([*self._unseen, job], seconds)
        self._unseen.clear()

    def unseen(self, job: Job, since_s: float) -> None:
        """An unstreamed prefill is over: the next first byte shows what both took, unless none comes."""
        if len(self._unseen) >= _MAX_UNSEEN:
            self._unseen.clear()
        if not self._unseen:
            self._unseen_since_s = since_s
        self._unseen.append(job)

    def forget_unseen(self) -> None:
        """What was not seen stays untold."""
        self._unseen.clear()

    def ended(self, job: Job, prompt_tokens: int, cached_tokens: int | None) -> None:
        """A request has ended; tokens as the engine reported them."""
        job.ended, job.computed = True, self._computed(job, prompt_tokens, cached_tokens)
        if job.group is not None:
            self._confirm(job.group)

    def close_group(self) -> None:
        """Nothing more belongs to the latest first bytes: what they took together is a sample."""
        group, self._group = self._group, PrefillGroup()
        if group.spoilt:
            group.dissolve()
        elif group.jobs:
            group.closed = True
            self.tracker = self.tracker.prefilled([job.expected for job in group.jobs], group.seconds)
            self._confirm(group)

    def _computed(self, job: Job, prompt_tokens: int, cached_tokens: int | None) -> Prefill | None:
        """What a prefill was; as expected where the engine never tells, None where it might have."""
        if cached_tokens is not None:
            self._tells_cached = True
        elif not self._tells_cached:
            cached_tokens = job.cached_tokens
            prompt_tokens = prompt_tokens or job.prompt_tokens
        else:
            # vLLM leaves the detail out where nothing was cached.
            cached_tokens = 0
        if prompt_tokens <= 0:
            return None
        cached_tokens = max(min(cached_tokens, prompt_tokens - 1), 0)
        return prompt_tokens - cached_tokens, cached_tokens

    def _confirm(self, group: PrefillGroup) -> None:
        """Fit a group once it is known what all of it was."""
        if not group.closed or not all(job.ended for job in group.jobs):
            return
        computed = [job.computed for job in group.jobs if job.computed is not None]
        if len(computed) == len(group.jobs):
            self.tracker = self.tracker.confirmed(computed, group.seconds)
        group.dissolve()
