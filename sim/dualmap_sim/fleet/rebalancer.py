"""The rebalancer of a simulated fleet: the core's plan over the queues, pass by pass."""

import math
from collections.abc import Callable, Sequence

from dualmap.job import Job
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
        if not any(self._may_shed(instance, now_s) for instance in queued):
            return
        queues = [self._queue(instance, now_s) for instance in self._instances if instance.alive]
        for move in plan_moves(queues, self._rule, now_s, self._last_batch_s):
            self._last_batch_s[move.source] = now_s
            self._move(self._instances[int(move.source)], move.request_id, int(move.target))

    def _may_shed(self, instance: SimInstance, now_s: float) -> bool:
        """A bound on what the core's plan takes off an instance that costs next to nothing."""
        jobs = instance.admission.queue.values()
        # Nobody moves who is late everywhere; past saturation that is most of a queue.
        if not any(now_s - job.arrival_s < job.slo_s and _is_movable(instance, job) for job in jobs):
            return False
        oldest_s = min((job.arrival_s for job in jobs if job.feasible), default=now_s)
        if now_s - oldest_s > self._rule.max_wait_s:
            return True
        speed = instance.admission.speed(now_s)
        wait_s = instance.admission.busy_s(now_s, speed) + sum(
            job.own_s(speed) for job in jobs if job.feasible
        )
        return wait_s > self._rule.slo_s

    def _queue(self, instance: SimInstance, now_s: float) -> InstanceQueue:
        admission = instance.admission
        in_hand = admission.in_hand(now_s)
        return InstanceQueue(
            instance=str(instance.index),
            speed=in_hand.speed,
            busy_s=max(in_hand.busy_s - in_hand.line.giving_way_s, 0.0),
            queue=tuple(
                self._work(instance, job, job.queued(job.own_s(in_hand.speed)))
                for job in admission.queue.values()
            ),
            accepts=not admission.held and not instance.draining,
            deficits=admission.deficits,
        )

    def _work(self, instance: SimInstance, job: Job, queued: QueuedRequest) -> QueuedWork:
        choice = instance.flights[queued.request_id].choice
        assert choice is not None
        return QueuedWork(
            queued=queued,
            prompt_tokens=job.prompt_tokens,
            backup=None if choice.backup is None else str(choice.backup),
            backup_cached_tokens=choice.backup_depth * CHUNK_TOKENS,
            feasible=job.feasible,
            movable=_is_movable(instance, job),
        )


def _is_movable(instance: SimInstance, job: Job) -> bool:
    # Elsewhere a preempted request would find nothing of what it has computed here.
    return job.preemptions == 0 and instance.flights[job.request_id].moves == 0
