"""The router's settings."""

from typing import Literal

from dualmap.prefix import DEFAULT_CHUNK_BYTES
from dualmap.types import ChoiceRule
from dualmap_router.http_server import HttpLimits
from dualmap_router.http_tls import CertifiedHttp, HttpTls, PlainHttp
from dualmap_service.credentials import Label, PemFiles
from dualmap_service.errors import SettingsError
from dualmap_service.settings import Count, NonNegative, Port, Positive, SharedSettings

_RULE = ChoiceRule()


class RouterSettings(SharedSettings, frozen=True, kw_only=True):
    """Environment: `DUALMAP_ROUTER_<FIELD>`."""

    router_id: str = ""
    """Its name in charges, headers and metrics; host and port when empty."""
    host: str = "127.0.0.1"
    port: Port = 8000
    """0 picks a free one."""
    processes: Count = 1
    """Routers on this port, one for each core that is to be used; each has a name and counters of its own."""
    own_port: Port = 0
    """A port that this process alone answers as well. Of several processes the first one's; 0 for those behind port."""
    reuse_port: bool = False
    """Share the port with other routers of this machine and user that do so too, as several processes do."""
    auth: Literal["auto", "keys", "none"] = "auto"
    """Whether clients need an API key. auto: if there is an api_keys_file; without one only this machine is served."""
    api_keys_file: str = ""
    """The keys, as `dualmap keys new --file` writes them; followed while the router runs."""
    open_metrics: bool = True
    """Let scrapers read /metrics without a key; otherwise administrators do."""
    share_prefixes: bool = False
    """Let tenants find each other's prefixes in the engines' caches: faster, and the speed tells what others asked."""
    tls_cert_file: str = ""
    """PEM: the certificate shown to clients, read again when it changes; plain HTTP when empty."""
    tls_key_file: str = ""
    """PEM: its key."""
    tls_client_ca_file: str = ""
    """PEM: with it, clients must show a certificate of this CA."""
    policy: Literal["dualmap", "paper", "round-robin", "least-loaded", "cache-affinity"] = "dualmap"
    """Of a request that names none."""
    slo_ttft_s: Positive = 5.0
    """The TTFT objective of a request that names none."""
    slo_ttft_per_1k_tokens_s: NonNegative = 0.0
    """What the objective grows by per 1,000 prompt tokens."""
    lambda_own: NonNegative = _RULE.lambda_own
    escape_at: NonNegative = _RULE.escape_at
    escape_margin: NonNegative = _RULE.escape_margin
    paper_factor: Positive = _RULE.paper_factor
    max_wait_s: NonNegative = 120.0
    """429 when a request would wait longer than this on every instance; 0 for no bound."""
    shed_at: NonNegative = 0.0
    """... or longer than this share of its TTFT objective: what is let in is then in time; 0 to let it be late."""
    chunk_bytes: Count = DEFAULT_CHUNK_BYTES
    max_chunks: Count = 1024
    """Leading chunks of a prompt that are hashed; what follows is not shared often enough to look at."""
    hash_secret: str = ""
    """Keeps outsiders from aiming prompts at an instance; the same in every router."""
    route_deadline_ms: Positive = 5.0
    """How long a decision may take in Redis before the router decides alone."""
    max_body_bytes: Count = 32 * 1024 * 1024
    max_buffer_bytes: Count = 4 * 1024 * 1024
    """Bytes of one answer that may wait for its client before the request is cancelled."""
    max_answer_bytes: Count = 128 * 1024 * 1024
    resume_streams: bool = True
    """Continue a stream whose engine dies with another; x-dualmap-resume: off does without for one request."""
    max_resume_bytes: Count = 2 * 1024 * 1024
    """Bytes of a stream that are kept in case it has to be continued; a longer one cannot be."""
    max_resume_total_bytes: Count = 512 * 1024 * 1024
    """Of all streams together."""
    max_held_bytes: Count = 1024 * 1024 * 1024
    """Bytes of request bodies that have come and are not answered yet; beyond it 429, and where there are keys for
    a tenant that has more than is left."""
    max_connections: Count = 16384
    client_head_s: Positive = 15.0
    """From the first byte of a request's head to its last."""
    client_body_s: Positive = 30.0
    """How long a request's body may stay behind a rate of 16 KB a second."""
    client_stall_s: Positive = 60.0
    """A client that reads nothing of a waiting answer for this long is cut off."""
    max_in_flight: Count = 8192
    """Requests in this router at once; beyond it 429."""
    max_attempts: Count = 4
    """How often in a row a request is tried on instances that fail it; one that drains has not failed, nor has one that
    brought a stream some way."""
    breaker_failures: Count = 5
    """After so many broken requests in a row nothing is sent to an instance for a while,"""
    breaker_s: NonNegative = 5.0
    """... this long the first time, twice as long each further time, at most a minute; 0 for never."""
    request_timeout_s: Positive = 3600.0
    drain_s: NonNegative = 30.0
    """How long running answers may take after SIGTERM."""
    ui: bool = True
    """Serve the live page at / and its data under /ui/."""
    passthrough: tuple[str, ...] = (
        "/v1/",
        "/v2/",
        "/tokenize",
        "/detokenize",
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/version",
    )
    """Path prefixes that reach an engine; its administration stays inside."""

    def check(self, label: Label) -> None:
        """Raise SettingsError for what cannot be used."""
        SharedSettings.check(self, label)
        if self.processes > 1 and not self.port:
            raise SettingsError(f"{label('processes')} needs a port that is not 0: they share it")
        if self.api_keys_file and self.max_held_bytes < 2 * self.max_body_bytes:
            raise SettingsError(
                f"{label('max_held_bytes')} must be twice {label('max_body_bytes')} or more: one tenant gets half of it"
            )
        self._tls_pem().check(label("tls_client_ca_file"), label("tls_cert_file"), label("tls_key_file"))
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise SettingsError(f"{label('tls_client_ca_file')} needs {label('tls_cert_file')}")

    def http_tls(self) -> HttpTls:
        """How clients are listened to."""
        return CertifiedHttp(self._tls_pem()) if self.tls_cert_file else PlainHttp()

    def _tls_pem(self) -> PemFiles:
        return PemFiles(self.tls_client_ca_file, self.tls_cert_file, self.tls_key_file)

    def http_limits(self) -> HttpLimits:
        """What clients may ask of the HTTP server."""
        return HttpLimits(
            max_body_bytes=self.max_body_bytes,
            max_held_bytes=self.max_held_bytes,
            max_connections=self.max_connections,
            head_s=self.client_head_s,
            body_s=self.client_body_s,
            stall_s=self.client_stall_s,
        )

    def wait_bound_s(self, slo_s: float) -> float:
        """How long a request with this objective may have to wait; 0 for no bound."""
        if self.shed_at <= 0.0:
            return self.max_wait_s
        shed_s = self.shed_at * slo_s
        return min(self.max_wait_s, shed_s) if self.max_wait_s > 0.0 else shed_s

    def rule(self) -> ChoiceRule:
        """The choice's settings as the core takes them."""
        return ChoiceRule(
            policy=self.policy,
            lambda_own=self.lambda_own,
            escape_at=self.escape_at,
            escape_margin=self.escape_margin,
            paper_factor=self.paper_factor,
        )
