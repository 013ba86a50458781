"""The rebalancer's settings: `DUALMAP_REBALANCER_*`, or flags of `dualmap rebalancer`; times are seconds."""

import os
import secrets
import socket

import msgspec

from dualmap.queue_order import OrderName, OrderRule
from dualmap.rebalance import RebalanceRule
from dualmap_service.credentials import Label
from dualmap_service.errors import SettingsError
from dualmap_service.settings import Count, NonNegative, Port, Positive, SharedSettings
from dualmap_wire.redis_keys import LEASE_MS

LEASE_S = LEASE_MS / 1000


def _own_name() -> str:
    """Host and process, and chance on top: containers of one host may all have process id 1."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


class RebalancerSettings(SharedSettings, frozen=True, kw_only=True):
    """What a rebalancer is told."""

    rebalancer_id: str = msgspec.field(default_factory=_own_name)
    """Its name in the leader lease, unique among rebalancers of a pool. [default: host, process id, chance]"""
    metrics_host: str = "127.0.0.1"
    """Where /metrics, /healthz and /readyz are served."""
    metrics_port: Port = 9402
    """0 picks a free port, which the log event `rebalancer.ready` names."""
    enabled: bool = True
    """False to fold telemetry and reap the dead but never move a request."""

    period_s: Positive = 0.1
    """Time between two rebalancing passes."""
    slo_s: Positive = 5.0
    """An instance is hot when its feasible queue is expected to wait longer than this."""
    max_wait_s: Positive = 3.0
    """An instance is hot when its oldest feasible request waited this long."""
    margin_s: NonNegative = 0.25
    """A move must gain more than this."""
    lambda_own: NonNegative = RebalanceRule().lambda_own
    """Weight of the prefill that a move adds; 0 to look at the TTFT alone."""
    cool_down_s: NonNegative = 1.0
    """The least time between two batches off one instance."""
    max_batch: Count = 64
    """Most requests moved off one instance at once."""
    max_queue_scan: Count = 512
    """Most requests looked at per hot instance."""
    order: OrderName = "late-last"
    """The workers' queue order."""
    tenant_fairness: bool = True
    """Whether tenants take turns in it, as in the workers' setting."""
    age_bound_s: NonNegative = 60.0
    """The workers' age bound: a late request that waited this long goes first."""
    move_deadline_s: Positive = 1.0
    """How long a worker may take to answer a Migrate call."""

    stale_s: Positive = 5.0
    """Telemetry older than this says nothing: no moves off the instance or to it."""
    tick_s: Positive = 0.01
    """Time between two reads of the telemetry sockets."""
    refold_s: Positive = 1.0
    """How often what has not changed is written to Redis again, so that it does not look stale."""

    lease_s: Positive = LEASE_S
    """How long the lead outlives its last renewal."""
    renew_s: Positive = 1.0
    """Time between two renewals of the lead."""
    standby_poll_s: Positive = 0.25
    """How often a standby tries to take the lead."""
    members_poll_s: Positive = 0.5
    """How often the membership is read."""
    reap_s: Positive = 1.0
    """How often the leader looks for lapsed leases of routers and workers."""
    reap_grace_s: NonNegative = LEASE_S
    """After an outage of Redis nothing is reaped for this long, so that the living can renew."""

    def __post_init__(self) -> None:
        """Settings that contradict each other stop the start."""
        if self.renew_s > self.lease_s / 2:
            raise SettingsError(
                f"renew_s ({self.renew_s:g}) must be at most half of lease_s ({self.lease_s:g})"
            )

    def check(self, label: Label) -> None:
        """Raise SettingsError for what cannot be used."""
        SharedSettings.check(self, label)
        if self.curve_key_file and not self.curve_workers_key_file:
            raise SettingsError(f"{label('curve_key_file')} needs {label('curve_workers_key_file')}")

    def rule(self) -> RebalanceRule:
        """What the core plans by."""
        return RebalanceRule(
            slo_s=self.slo_s,
            max_wait_s=self.max_wait_s,
            margin_s=self.margin_s,
            lambda_own=self.lambda_own,
            cool_down_s=self.cool_down_s,
            max_batch=self.max_batch,
            max_queue_scan=self.max_queue_scan,
            order=OrderRule(
                order=self.order, age_bound_s=self.age_bound_s, tenant_fairness=self.tenant_fairness
            ),
        )
