"""The rebalancer of a simulated fleet: the core's plan over the queues, pass by pass."""

import math
from collections.abc import Callable, Sequence

from dualmap.queue_order import QueuedRequest
from dualmap.rebalance import InstanceQueue, QueuedWork, RebalanceRule, plan_moves
from dualmap_sim.fleet.engine import CHUNK_TOKENS
from dualmap_sim.fleet.instance import SimInstance
from dualmap_sim.fleet.loop import Loop


class SimRebalancer:
    """Plans a batch of moves at each pass, while requests are queued."""

    def __init__(
        self,
        loop: Loop,
        instances: Sequence[SimInstance],
        rule: RebalanceRule,
        move: Callable[[SimInstance, str, int], None],
        pass_s: float = 0.1,
    ) -> None:
        self._loop = loop
        self._instances = instances
        self._rule = rule
        self._move = move
        self._pass_s = pass_s
        self._last_batch_s: dict[str, float] = {}
        self._awake = False
        self._beat = 0

    def wake(self) -> None:
        """A request was queued: pass until no queue is left."""
        if not self._awake:
            self._awake = True
            # Passes keep their own beat, as the service's do.
            self._beat = max(self._beat + 1, math.ceil(self._loop.now_s / self._pass_s))
            self._loop.at(self._beat * self._pass_s, self._pass)

    def _pass(self) -> None:
        self._awake = False
        queued = [instance for instance in self._instances if instance.alive and instance.admission.queue]
        if not queued:
            return
        self.wake()
        now_s = self._loop.now_s
        if not any(self._may_be_hot(instance, now_s) for instance in queued):
            return
        queues = [self._queue(instance, now_s) for instance in self._instances if instance.alive]
        for move in plan_moves(queues, self._rule, now_s, self._last_batch_s):
            self._last_batch_s[move.source] = now_s
            self._move(self._instances[int(move.source)], move.request_id, int(move.target))

    def _may_be_hot(self, instance: SimInstance, now_s: float) -> bool:
        """A bound on the core's `is_hot` that costs next to nothing."""
        jobs = instance.admission.queue.values()
        oldest_s = min((job.arrival_s for job in jobs if job.feasible), default=now_s)
        if now_s - oldest_s > self._rule.max_wait_s:
            return True
        speed = instance.admission.speed(now_s)
        wait_s = instance.admission.busy_s(now_s) + sum(job.own_s(speed) for job in jobs if job.feasible)
        return wait_s > self._rule.slo_s

    def _queue(self, instance: SimInstance, now_s: float) -> InstanceQueue:
        admission = instance.admission
        speed = admission.speed(now_s)
        line = admission.in_line(now_s)
        return InstanceQueue(
            instance=str(instance.index),
            speed=speed,
            busy_s=max(admission.busy_s(now_s) - line.giving_way_s, 0.0),
            queue=tuple(
                self._work(instance, job.queued(job.own_s(speed))) for job in admission.queue.values()
            ),
            accepts=not admission.held and not instance.draining,
        )

    def _work(self, instance: SimInstance, queued: QueuedRequest) -> QueuedWork:
        flight = instance.flights[queued.request_id]
        choice, job = flight.choice, flight.job
        assert choice is not None and job is not None
        return QueuedWork(
            queued=queued,
            prompt_tokens=job.prompt_tokens,
            backup=None if choice.backup is None else str(choice.backup),
            backup_cached_tokens=choice.backup_depth * CHUNK_TOKENS,
            feasible=job.feasible,
            # Elsewhere a preempted request would find nothing of what it has computed here.
            movable=flight.moves == 0 and job.preemptions == 0,
        )
