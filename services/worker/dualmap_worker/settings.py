"""The worker's settings."""

from typing import Literal

from dualmap.preempt import PreemptRule
from dualmap.queue_order import OrderName, OrderRule
from dualmap_service.credentials import Label
from dualmap_service.curve import CurvePublishing, InTheClear, Publishing, check_clients
from dualmap_service.errors import SettingsError
from dualmap_service.settings import Count, NonNegative, Port, Positive, PositiveShare, Share, SharedSettings
from dualmap_wire.telemetry import Weight

DEFAULT_ENGINE_URL = "http://127.0.0.1:8100"
_ORDER = OrderRule()
_PREEMPT = PreemptRule()


class WorkerSettings(SharedSettings, frozen=True, kw_only=True):
    """Environment: `DUALMAP_WORKER_<FIELD>`."""

    instance: str = ""
    """The instance's name in the pool; host and port when empty."""
    engine: Literal["url", "vllm", "command"] = "url"
    """One that runs already, or one that the worker starts and restarts: vLLM, or any command line."""
    engine_url: str = DEFAULT_ENGINE_URL
    """An OpenAI-compatible engine that runs already, or where a command will listen."""
    engine_args: str = ""
    """As after `--`, in a shell's quoting: what `vllm serve` takes, or a command; {port} there is a free port."""
    engine_python: str = ""
    """The Python that has vLLM; the worker's own when empty."""
    engine_log: str = ""
    """A file for what a started engine prints; the worker's standard error when empty."""
    engine_hang_s: Positive = 60.0
    """A started engine that answers nothing for so long is killed and started again."""
    engine_restart_s: Positive = 1.0
    """Before a started engine that died is started again; twice as long each time that it does not last."""
    engine_stop_s: NonNegative = 15.0
    """How long a started engine may take to stop before it is killed."""
    kv_events_url: str = ""
    """Where an engine that the worker did not start with --engine vllm publishes KV events, as tcp://127.0.0.1:5557."""
    kv_replay_url: str = ""
    """Where it replays them."""
    engine_api_key: str = ""
    model: str = ""
    """The model's name; asked of the engine when empty."""
    host: str = "127.0.0.1"
    """Where gRPC and telemetry listen."""
    advertise_host: str = ""
    """The host that others reach this worker by; when empty `host`, or for a wildcard the address towards Redis."""
    grpc_port: Port = 0
    telemetry_port: Port = 0
    weight: Weight = 1.0
    """Its share of the keys, relative to other instances."""
    order: OrderName = "late-last"
    """Of the admission queue; late-last puts who can no longer meet the SLO behind who can."""
    tenant_fairness: bool = True
    """late-last: tenants, which routers with API keys tell, take turns by prefill seconds; dlpm always does that."""
    age_bound_s: Positive = _ORDER.age_bound_s
    """late-last: a late request that waited this long goes first, the oldest at a time ..."""
    aged_share: PositiveShare = _ORDER.aged_share
    """... for no more than this share of the engine's time while others could be in time."""
    preempt: bool = True
    """Abort a prefill that can no longer meet its SLO when a request waits that still can, and resume it later."""
    preempt_min_s: Positive = _PREEMPT.min_s
    """... if more than this is left of it,"""
    preempt_min_run_s: Positive = _PREEMPT.min_run_s
    """... it has run this long since it was started last,"""
    preempt_max: Count = _PREEMPT.max_times
    """... it was preempted less often than this,"""
    preempt_until_age: Share = _PREEMPT.until_age
    """... and waited less than this share of the age bound."""
    step_tokens: Count = 8192
    """vLLM's --max-num-batched-tokens: an aborted prefill holds the engine until its step ends."""
    prefill_ahead_tokens: Count = 2048
    """The engine gets its next prefill when what it has left falls under this: busy but shallow."""
    max_queued: Count = 4096
    max_running: Count = 256
    """Requests in the engine at once: vLLM's --max-num-seqs."""
    hold_kv_use: Share = 0.97
    """Hold admissions while the engine's KV cache is fuller than this and requests wait inside it."""
    kv_tokens: NonNegative = 0
    """Tokens that the engine's KV cache holds; read from its metrics when 0."""
    first_byte_timeout_s: Positive = 600.0
    engine_wait_s: Positive = 600.0
    """How long the engine may take to be ready, at each start."""
    coalesce_ms: NonNegative = 5.0
    """How long bytes after the first may wait to share a frame."""
    max_outbox_bytes: Count = 16 * 1024 * 1024
    """Bytes that may wait for one router before its engine streams are read no further."""
    report_period_s: Positive = 0.1
    drain_s: NonNegative = 30.0
    curve_clients_dir: str = ""
    """With CURVE keys: a folder with the public keys, NAME.key, of who may listen to telemetry."""

    def check(self, label: Label) -> None:
        """Raise SettingsError for what cannot be used."""
        SharedSettings.check(self, label)
        if bool(self.curve_key_file) != bool(self.curve_clients_dir):
            raise SettingsError(
                f"{label('curve_key_file')} and {label('curve_clients_dir')} go together: who may listen?"
            )
        if self.curve_clients_dir:
            check_clients(self.curve_clients_dir, label("curve_clients_dir"))

    def publishing(self) -> Publishing:
        """Who may listen to telemetry."""
        if not self.curve_key_file:
            return InTheClear()
        return CurvePublishing(self.curve_key_file, self.curve_clients_dir)

    def order_rule(self) -> OrderRule:
        """The order of the admission queue."""
        return OrderRule(self.order, self.age_bound_s, self.aged_share, self.tenant_fairness)

    def preempt_rule(self) -> PreemptRule:
        """Which running prefills give way."""
        return PreemptRule(
            enabled=self.preempt,
            min_s=self.preempt_min_s,
            min_run_s=self.preempt_min_run_s,
            max_times=self.preempt_max,
            until_age=self.preempt_until_age,
        )
